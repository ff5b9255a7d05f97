"""Leaderboards: orders, intervals, stability, and agreement with people."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from rankwise.data.personal import pens
from rankwise.ranking import agreement, borda, jsd, leaderboard, perseval, reasons, standings
from rankwise.ranking.standings import _stability, _tau

DATA = Path(os.environ.get("RANKWISE_DATA", Path(__file__).parents[3] / "shared" / "data"))
# published scores of ten systems on PENS, by people and with InfoLM as the distance
PEOPLE = {
    "NAML_1": 0.3155, "NRMS_1": 0.3645, "NRMS_2": 0.3268, "EBNR_1": 0.3173, "EBNR_2": 0.3300, "BigBird": 0.3509,
    "BRIO": 0.4519, "ProphetNet": 0.4160, "CLS": 0.4283, "T5": 0.4115,
}  # fmt: skip
INFOLM = dict(
    zip(PEOPLE, (0.0508, 0.0453, 0.0133, 0.0287, 0.0127, 0.1945, 0.1543, 0.1351, 0.1795, 0.1242), strict=True)
)
BY_JSD = {
    "BigBird": 0.2548, "CLS": 0.1917, "BRIO": 0.1570, "ProphetNet": 0.0648, "T5": 0.0579, "NRMS_1": 0.0314,
    "NAML_1": 0.0063, "EBNR_1": 0.0038, "EBNR_2": 0.0011, "NRMS_2": 0.0009,
}  # fmt: skip
WORDS = ["states", "sue", "rule", "law", "fight", "city", "town", "rain", "critics", "business", "power", "plant"]


def texts(seed, documents=30, readers=3):
    rng = np.random.default_rng(seed)
    return {
        f"d{i}": {f"u{j}": " ".join(rng.choice(WORDS, 5, replace=False)) for j in range(readers)}
        for i in range(documents)
    }


def noisy(wrote, share, seed):
    """Each word kept, or with that chance another."""
    rng = np.random.default_rng(seed)

    def changed(text):
        return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())

    return {d: {u: changed(text) for u, text in own.items()} for d, own in wrote.items()}


@pytest.fixture(scope="module")
def board():
    wrote = texts(0)
    systems = {f"noise {p}": noisy(wrote, p, 1) for p in (0.8, 0.0, 0.4)}
    systems["same"] = {d: dict.fromkeys(own, "states sue") for d, own in wrote.items()}
    return leaderboard(None, wrote, systems, simplified=True, resamples=400), wrote, systems


def test_published_scores_agree_with_peoples_as_published():
    found = agreement(INFOLM, PEOPLE)
    assert [round(v, 3) for v in (found.pearson, found.spearman, found.kendall)] == [0.734, 0.624, 0.422]
    found = agreement(BY_JSD, PEOPLE)
    assert [round(v, 3) for v in (found.pearson, found.spearman, found.kendall)] == [0.540, 0.697, 0.511]


def test_agreement_is_of_the_same_three_systems_or_more():
    for a, b in (({"a": 1, "b": 2}, {"a": 1, "b": 2}), (PEOPLE, INFOLM | {"x": 1})):
        with pytest.raises(ValueError, match="three or more"):
            agreement(a, b)


def test_bordas_points_are_n_for_the_first_and_1_for_the_last_of_each_order_and_ties_share():
    assert borda({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}) == {"a": 6, "b": 4, "c": 2}
    assert borda({"a": 1.5, "b": 1.5}) == {"a": 1.5, "b": 1.5}


def test_systems_stand_in_the_order_of_their_noise(board):
    found, wrote, systems = board
    assert found.systems == ["noise 0.0", "noise 0.4", "noise 0.8", "same"]
    assert found.ranks["perseval"] == {name: i + 1.0 for i, name in enumerate(found.systems)}
    assert found.borda["noise 0.0"] == 8
    for name, report in found.reports.items():
        alone = perseval(None, wrote, systems[name], simplified=True, resamples=1)
        assert (report.score, report.degress, report.distance) == (alone.score, alone.degress, alone.distance)


def test_accuracy_and_egises_are_ranks_beside_that_by_perseval(board):
    found, *_ = board
    for kind, attribute in (("accuracy", "distance"), ("egises", "egises")):
        order = sorted(found.systems, key=lambda name: getattr(found.reports[name], attribute))
        assert [found.ranks[kind][name] for name in order] == [1, 2, 3, 4]


def test_draws_of_documents_are_the_same_for_all_systems(board):
    """So differences are sure where intervals overlap: a system, and the same a little better everywhere."""
    found, wrote, systems = board
    assert np.diag(found.ahead).tolist() == [0] * 4
    assert found.ahead[0, 1:] == pytest.approx(1)
    same = leaderboard(None, wrote, {"a": systems["noise 0.4"], "b": systems["noise 0.4"]}, simplified=True)
    assert same.ahead.tolist() == [[0, 0], [0, 0]]
    assert (same.reports["a"].low, same.reports["a"].high) == (same.reports["b"].low, same.reports["b"].high)
    assert same.ranks["perseval"] == {"a": 1.5, "b": 1.5}


def test_all_of_documents_and_all_of_pairs_give_the_score_and_the_order(board):
    found, *_ = board
    assert [(s.by, s.share) for s in found.stability] == [
        (by, share) for by in ("documents", "pairs") for share in (1.0, 0.8, 0.6, 0.4, 0.2)
    ]
    for stability in found.stability:
        if stability.share == 1:
            assert stability.kendall == pytest.approx(1)
            for name, score in stability.scores.items():
                assert score == pytest.approx(found.reports[name].score, abs=1e-12)
        else:
            assert stability.kendall > 0.5
            assert stability.scores["noise 0.0"] == pytest.approx(found.reports["noise 0.0"].score, rel=0.02)


def test_each_share_is_drawn_ten_times_and_all_of_it_once(monkeypatch):
    found = []

    def counted(by, share, order, whole, drawn):
        found.append((by, share, len(drawn)))
        return _stability(by, share, order, whole, drawn)

    monkeypatch.setattr(standings, "_stability", counted)
    leaderboard(None, texts(0, documents=5), {"a": texts(0, documents=5)}, simplified=True, resamples=1)
    assert found == [(by, s, 1 if s == 1 else 10) for by in ("documents", "pairs") for s in (1.0, 0.8, 0.6, 0.4, 0.2)]


def test_what_scores_wander_is_the_deviation_of_the_five_shares(board):
    found, *_ = board
    for by in ("documents", "pairs"):
        scores = [s.scores["noise 0.4"] for s in found.stability if s.by == by]
        mean = sum(scores) / 5
        assert found.wander(by)["noise 0.4"] == pytest.approx((sum((s - mean) ** 2 for s in scores) / 5) ** 0.5)
        assert found.wander(by)["noise 0.4"] > 0


def test_the_seed_decides_every_draw(board):
    _, wrote, systems = board
    a, b, c = (leaderboard(None, wrote, systems, simplified=True, resamples=50, seed=s) for s in (0, 0, 1))
    assert a.stability == b.stability != c.stability
    assert a.reports["same"].low == b.reports["same"].low
    assert a.reports["noise 0.4"].low != c.reports["noise 0.4"].low


def test_all_systems_are_judged_on_what_each_of_them_has(board):
    _, wrote, systems = board
    less = {d: {u: t for u, t in own.items() if (d, u) != ("d0", "u0")} for d, own in systems["same"].items()}
    with pytest.warns(UserWarning, match="1 readers without a summary of every system"):
        found = leaderboard(None, wrote, systems | {"same": less}, simplified=True, resamples=1)
    assert {len(r.users["user"]) for r in found.reports.values()} == {89}
    assert found.notes == ["left out: 1 readers without a summary of every system"]


def test_no_system_is_refused_and_one_alone_is_its_score():
    wrote = texts(0, documents=3)
    with pytest.raises(ValueError, match="no system"):
        leaderboard(None, wrote, {}, simplified=True)
    alone = leaderboard(None, wrote, {"a": wrote}, simplified=True)
    assert alone.systems == ["a"]
    assert {s.kendall for s in alone.stability} == {1.0}


def test_an_order_that_is_all_ties_agrees_with_ties_alone():
    wrote = texts(0, documents=4)
    alike = leaderboard(None, wrote, {"a": wrote, "b": wrote}, simplified=True, resamples=2)
    assert {s.kendall for s in alike.stability} == {1.0}
    assert _tau(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0
    assert _tau(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == 0
    assert _tau(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == -1


def test_draws_in_which_no_pair_was_drawn_say_nothing():
    wrote = texts(0, documents=2, readers=2)
    few = leaderboard(None, wrote, {"a": wrote, "b": noisy(wrote, 0.9, 0)}, simplified=True, resamples=2)
    assert all(np.isfinite([s.kendall, *s.scores.values()]).all() for s in few.stability)
    nothing = _stability("pairs", 0.2, ["a", "b"], np.array([1.0, 2.0]), [np.full(2, np.nan)] * 3)
    assert np.isnan([nothing.kendall, nothing.scores["a"]]).all()
    some = _stability("pairs", 0.2, ["a", "b"], np.array([1.0, 2.0]), [np.full(2, np.nan), np.array([3.0, 4.0])])
    assert (some.kendall, some.scores) == (1.0, {"a": 3.0, "b": 4.0})


def test_each_document_has_its_reason():
    wrote = {"d": {"ann": "states sue over pollution", "bob": "business glad of lax rule", "cid": "towns wet"}}

    def why(*given):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reasons(perseval(None, wrote, {"d": dict(zip(wrote["d"], given, strict=True))}, simplified=True))[0]

    own = tuple(wrote["d"].values())
    assert why(*own) == "summaries differ as readers do (1.00 and 1.00 apart); all are near, .00 to .00 away"
    assert why("rain", "rain", "rain").startswith("one summary for all")
    assert why("rain", "rain", "rain").endswith("even the nearest is 1.00 from what its reader wrote")
    assert "summaries are only .33 apart, while what readers wrote is 1.00 apart" in why(
        "rain noon day", "rain noon fog", "rain noon sun"
    )
    assert why(own[0], own[2], own[1]).endswith("served unequally: .00 to 1.00 away")


@pytest.mark.skipif(not (DATA / "pens").is_dir(), reason="data that cannot be shipped is not here: PENS")
@pytest.mark.slow
def test_accuracy_is_flat_where_personalisation_differs_tenfold():
    news = pens(DATA / "pens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = jsd(words=lambda text: re.findall("[a-z]+", text.lower()))
        found = leaderboard(None, news.users, news.systems, distance=words, simplified=True)
    assert set(found.systems[:3]) == {"NAML", "NRMS", "EBNR"}
    distances, scores = ([getattr(r, k) for r in found.reports.values()] for k in ("distance", "score"))
    assert max(distances) - min(distances) < 0.02
    assert max(scores) > 8 * min(scores)
