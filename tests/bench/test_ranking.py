"""What recipes of ranking conclude: every claim by its own comparison, and every control can fail."""

from types import SimpleNamespace

import numpy as np
import pytest

from rankwise.bench.ranking import perseval as recipe
from rankwise.bench.shared.measured import plain
from rankwise.data.personal import Read
from rankwise.ranking import leaderboard

LEVELS = [f"noise {100 * p:.0f}%" for p in recipe.NOISE]
SCORES = dict(zip(LEVELS, (0.5, 0.4, 0.3, 0.2), strict=True)) | {
    recipe.OTHER: 0.1, recipe.SAME: 0.0, recipe.TWIN: 0.3, recipe.OWN: 1.0,
}  # fmt: skip


def board(scores=None, degress=None):
    names = SCORES | (scores or {})
    alike = dict.fromkeys(names, 0.8) | (degress or {})
    reports = {
        n: SimpleNamespace(score=s, degress=alike[n], egises=1 - alike[n], distance=0.5) for n, s in names.items()
    }
    return SimpleNamespace(systems=list(names), reports=reports)


def power(far=1.0, twins=0.05):
    return {"papers": {"noise 0% and 25%": dict.fromkeys(map(str, recipe.SIZES), far),
                       "twins": dict.fromkeys(map(str, recipe.SIZES), twins)}}  # fmt: skip


def held(boards=None, by=None, found=None):
    claims = recipe._claims({"papers": boards or [board()]}, by or {"jsd": board()}, found or power())
    assert [c.control for c in claims] == [False, False, True, False, False, True]
    return [c.held for c in claims]


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({}, []),
        ({"boards": [board(), board({LEVELS[2]: 0.15})]}, [0]),
        ({"boards": [board(), board({recipe.OTHER: 0.45, recipe.SAME: 0.0})]}, [1, 2]),
        ({"boards": [board({recipe.SAME: 0.11})]}, [1]),
        ({"boards": [board(degress={recipe.OTHER: 0.5})]}, [2]),
        ({"by": {"jsd": board(), "bleu": board({LEVELS[3]: 0.45})}}, [3]),
        ({"found": power(far=0.7)}, [4]),
        ({"found": power(twins=0.2)}, [5]),
    ],
)
def test_each_claim_fails_by_its_own_comparison(changed, fails):
    assert [i for i, ok in enumerate(held(**changed)) if not ok] == fails


DOCUMENTS = [
    Read(id=f"d{i}", sentences=[f"s{k} of {i}" for k in range(40)], wrote={"a": "x", "b": "y", "c": "z"},
         marked={"a": [1, 2, 3, 4], "b": [11, 12, 13, 14], "c": [21, 22]})
    for i in range(30)
]  # fmt: skip


def test_systems_are_made_as_they_are_named():
    made = recipe.systems(DOCUMENTS, 0)
    assert made["noise 0%"]["d3"]["c"] == "s21 of 3 s22 of 3"
    assert [made[recipe.OTHER]["d0"][u] for u in "abc"] == [made["noise 0%"]["d0"][u] for u in "bca"]
    assert set(made[recipe.SAME]["d0"].values()) == {"s0 of 0 s1 of 0 s2 of 0 s3 of 0"}
    assert made[recipe.OWN]["d0"] == {"a": "x", "b": "y", "c": "z"}
    kept = {}
    for name in (*LEVELS, recipe.TWIN):
        same = [made[name][d.id]["a"].split(" s")[k] == made["noise 0%"][d.id]["a"].split(" s")[k]
                for d in DOCUMENTS for k in range(4)]  # fmt: skip
        kept[name] = np.mean(same)
    assert [kept[n] for n in LEVELS] == pytest.approx([1, 0.75, 0.5, 0.25], abs=0.12)
    assert made[recipe.TWIN] != made["noise 50%"]
    assert made == recipe.systems(DOCUMENTS, 0)
    assert made["noise 50%"] != recipe.systems(DOCUMENTS, 1)["noise 50%"]


def test_readers_without_a_mark_are_left_out_and_the_nearest_sentences_stand_for_marks():
    paper = Read(id="p", sentences=["a"], wrote={"a": "x", "b": "y"}, marked={"a": [0], "b": []})
    assert recipe._marked(paper).wrote == {"a": "x"}
    topic = Read(id="t", sentences=["it rains", "a good film", "good food"], wrote={"1": "Good film."}, marked={})
    assert recipe._nearest(topic).marked == {"1": [1]}


def test_power_grows_with_documents_and_twins_are_seldom_told_apart(monkeypatch):
    monkeypatch.setattr(recipe, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    values = {"noise 0%": rng.normal(0.05, 0.1, 200), "noise 25%": np.zeros(200),
              "noise 50%": rng.normal(0.05, 0.1, 200), recipe.TWIN: np.zeros(200)}  # fmt: skip
    reports = {n: SimpleNamespace(documents={"perseval": v}) for n, v in values.items()}
    found = recipe._power(SimpleNamespace(systems=list(values), reports=reports))
    far = list(found["noise 0% and 25%"].values())
    assert far[0] < 0.6 < 0.95 < far[-1]
    assert found["twins"]["160"] < 0.12


def test_a_board_of_what_is_kept_is_the_leaderboard(monkeypatch):
    monkeypatch.setattr(recipe, "RESAMPLES", 50)
    documents = DOCUMENTS[:6]
    told = {d.id: " ".join(d.sentences) for d in documents}
    whole = leaderboard(told, {d.id: d.wrote for d in documents}, recipe.systems(documents, 0), distance="jsd",
                        resamples=50, seed=0)  # fmt: skip
    board = recipe.Board.of(plain(recipe._judged((documents, 0, "jsd"))), 0)
    assert board.systems == whole.systems
    assert board.ranks["accuracy"] == whole.ranks["accuracy"]
    for name, report in whole.reports.items():
        for what in ("score", "low", "high", "egises", "distance"):
            assert getattr(board.reports[name], what) == pytest.approx(getattr(report, what), abs=1e-4)
