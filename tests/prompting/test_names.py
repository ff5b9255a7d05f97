"""The words that options take are those of the papers and the documentation."""

from rankwise.prompting import names


def test_the_words_that_options_take():
    assert names.STYLES == ("chat", "text")
    assert names.ORDERS == ("ascending", "descending")
    assert names.DISTANCES == ("cosine", "chord")
    assert names.P_VALUES == ("permutation", "ranksum")
    assert names.RANKERS == ("equilibrium", "er-g", "g", "d", "mi", "sc")
    assert names.LENGTHS == ("sum", "mean")
    assert names.SELECTORS == {
        "dq-lore": ("candidates", "rank", "train", "retriever", "seed"),
        "knn": ("retriever",),
        "bm25": (),
        "depth": ("retriever",),
        "random": ("seed",),
    }
