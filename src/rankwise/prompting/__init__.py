"""A frozen language model does better when its examples and its answer are chosen well."""

from rankwise.prompting.depth import DepthTest, TextDepth, depth_rank_test, pooled_quality, quality

__all__ = ["DepthTest", "TextDepth", "depth_rank_test", "pooled_quality", "quality"]
