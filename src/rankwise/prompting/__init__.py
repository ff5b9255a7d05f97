"""A frozen language model does better when its examples and its answer are chosen well."""

from rankwise.prompting.depth import DepthTest, TextDepth, depth_rank_test, pooled_quality, quality
from rankwise.prompting.equilibrium import EquilibriumRanker, Ranking

__all__ = ["DepthTest", "EquilibriumRanker", "Ranking", "TextDepth", "depth_rank_test", "pooled_quality", "quality"]
