"""Several fine-tunes of one base become one model, without training."""

from rankwise.merging import methods as methods  # isort: split  (they enter the registry before anything asks for it)
from rankwise.merging.engine.alignment import Conflict
from rankwise.merging.engine.config import MergeConfig
from rankwise.merging.engine.run import Merge, merge, merge_checkpoints, prepare
from rankwise.merging.low_rank import LowRank
from rankwise.merging.methods.averaging import linear, model_stock, rewarded_soup, task_arithmetic
from rankwise.merging.methods.interpolation import passthrough, slerp
from rankwise.merging.methods.masks import consensus, pcb
from rankwise.merging.methods.singular import rtsvm, tsvm
from rankwise.merging.methods.sparse import ties
from rankwise.merging.registry import METHODS, MergeMethod, Parameter, register

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
