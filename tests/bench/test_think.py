"""The recipe of ThinK: rows of tokens and questions are summed up by paper, and what the claims can lose to."""

import pytest

from rankwise.bench.compression import think as recipe
from rankwise.bench.shared.measured import plain


def paper(i, **losses):
    """What was published: so much is lost a token by each way; the same at every ratio."""
    worse = {"dense": 0.0, "think": 0.01, "all": 0.05, "keys": 0.05, "random": 0.1, "zeroed": 0.05, "pca": 0.0,
             "snapkv": 0.015} | losses  # fmt: skip

    def told(way, ratio):
        loss = 2 + worse[way] * (way != "snapkv" or ratio > 0) + i / 100
        return {"loss": [loss - 0.5, loss + 0.5], "agrees": "1101", "recall": "1111", "bytes": 1}

    return {way: {str(r): told(way, r) for r in recipe._ratios(way)} for way in worse}


def judged(**losses):
    return recipe.judge(plain({f"paper {i}": paper(i, **losses) for i in range(4)}))


def test_a_paper_is_summed_up_over_its_tokens_and_questions():
    found = recipe._summed(paper(0))["think"]["0.4"]
    assert found == {"loss": pytest.approx(2.01), "agrees": 0.75, "recall": 1.0, "bytes": 1}


def test_what_was_published_holds_every_claim():
    assert all(c.held for c in judged().claims)


@pytest.mark.parametrize(("losses", "lost"), [
    ({"think": 0.03}, "rises by at most 0.02"), ({"keys": 0.0}, "smallest keys"), ({"all": 0.0}, "that are thinned"),
    ({"zeroed": 0.0}, "zeros in all rows"), ({"pca": 0.02}, "best projection"), ({"snapkv": 0.05}, "after SnapKV"),
    ({"random": 0.0}, "control: random"),
])  # fmt: skip
def test_each_claim_can_be_lost(losses, lost):
    assert [c.text for c in judged(**losses).claims if not c.held and lost in c.text]
