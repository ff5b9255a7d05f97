"""The words that options of prompting take; nothing is imported, so that they can be checked first."""

STYLES = ("chat", "text")
ORDERS = ("ascending", "descending")
DISTANCES = ("cosine", "chord")
P_VALUES = ("permutation", "ranksum")
RANKERS = ("equilibrium", "er-g", "g", "d", "mi", "sc")
LENGTHS = ("sum", "mean")
# selectors, and which options each has besides those of all
SELECTORS: dict[str, tuple[str, ...]] = {
    "dq-lore": ("candidates", "rank", "train", "retriever", "seed"),
    "knn": ("retriever",),
    "bm25": (),
    "depth": ("retriever",),
    "random": ("seed",),
}
