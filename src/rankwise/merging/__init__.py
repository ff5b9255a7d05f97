"""Several fine-tunes of one base become one model, without training."""

from rankwise.merging.alignment import Conflict
from rankwise.merging.averaging import linear, model_stock, rewarded_soup, task_arithmetic
from rankwise.merging.config import MergeConfig
from rankwise.merging.interpolation import passthrough, slerp
from rankwise.merging.low_rank import LowRank
from rankwise.merging.masks import consensus, pcb
from rankwise.merging.registry import METHODS, MergeMethod, Parameter, register
from rankwise.merging.run import Merge, merge, merge_checkpoints, prepare
from rankwise.merging.sparse import ties
from rankwise.merging.tsvm import rtsvm, tsvm

__all__ = [
    "METHODS",
    "Conflict",
    "LowRank",
    "Merge",
    "MergeConfig",
    "MergeMethod",
    "Parameter",
    "consensus",
    "linear",
    "merge",
    "merge_checkpoints",
    "model_stock",
    "passthrough",
    "pcb",
    "prepare",
    "register",
    "rewarded_soup",
    "rtsvm",
    "slerp",
    "task_arithmetic",
    "ties",
    "tsvm",
]
