"""Making models smaller by rank: factorised layers (WeLore), factorised attention (LAMA)."""

from rankwise.compression import lama, welore
from rankwise.compression.lama import LamaClassifier, LamaConfig, LowRankAttentionPooling
from rankwise.compression.plans import Component, Plan
from rankwise.compression.welore import apply, compress, load, plan, to_dense, train_only
from rankwise.models.low_rank import LowRankLinear

__all__ = [
    "Component",
    "LamaClassifier",
    "LamaConfig",
    "LowRankAttentionPooling",
    "LowRankLinear",
    "Plan",
    "apply",
    "compress",
    "lama",
    "load",
    "plan",
    "to_dense",
    "train_only",
    "welore",
]
