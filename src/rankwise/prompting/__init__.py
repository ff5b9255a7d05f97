"""A frozen language model does better when its examples and its answer are chosen well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankwise.prompting.answers import Choices, rank_answers, score_answers
from rankwise.prompting.depth import DepthTest, TextDepth, depth_rank_test, pooled_quality, quality
from rankwise.prompting.dq_lore import DQLoReSelector, lore, scored_pairs, train_retriever
from rankwise.prompting.equilibrium import EquilibriumRanker, Ranking
from rankwise.prompting.examples import Columns, Example, extract_answer, few_shot, read_examples
from rankwise.prompting.iterative import Answer, Item, IterativeICL, SimilarityIndex
from rankwise.prompting.language_model import Generation, LanguageModel, Recorded, Sampling, Score, TextGenerator
from rankwise.prompting.selectors import BM25Selector, DepthSelector, KNNSelector, RandomSelector
from rankwise.prompting.server_model import ServerModel

if TYPE_CHECKING:
    from rankwise.prompting.transformers_model import TransformersModel
    from rankwise.prompting.video import VideoModel, read_frames

__all__ = [
    "Answer",
    "BM25Selector",
    "Choices",
    "Columns",
    "DQLoReSelector",
    "DepthSelector",
    "DepthTest",
    "EquilibriumRanker",
    "Example",
    "Generation",
    "Item",
    "IterativeICL",
    "KNNSelector",
    "LanguageModel",
    "RandomSelector",
    "Ranking",
    "Recorded",
    "Sampling",
    "Score",
    "ServerModel",
    "SimilarityIndex",
    "TextDepth",
    "TextGenerator",
    "TransformersModel",
    "VideoModel",
    "depth_rank_test",
    "extract_answer",
    "few_shot",
    "lore",
    "pooled_quality",
    "quality",
    "rank_answers",
    "read_examples",
    "read_frames",
    "score_answers",
    "scored_pairs",
    "train_retriever",
]
_LATE = {
    "TransformersModel": "rankwise.prompting.transformers_model",
    "VideoModel": "rankwise.prompting.video",
    "read_frames": "rankwise.prompting.video",
}


def __getattr__(name: str):
    """What needs transformers comes when it is asked for: depths and servers do not."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)
