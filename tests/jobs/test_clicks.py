"""From a log to a ranker, its scores and their judgement; what is said, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rankwise.data.tables import write_rows
from rankwise.jobs.clicks import _notes, evaluate_scores, fit_log, groups_of_positions, score_documents
from rankwise.ranking import (
    PBM,
    DualLearningRanker,
    NaiveRanker,
    PropensityCurve,
    attraction,
    load_ranker,
    save_ranker,
)

SMALL = {"ranker": "linear", "steps": 40, "learning_rate": 0.05, "resamples": 50}


def write_log(folder, *, by_relevance=0.0, sessions=300, queries=12, documents=6, seed=0):
    """Judged documents and clicks; shown by a second feature and, as asked for, by relevance."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(queries, documents, 2)).round(4)
    y = np.clip(np.round(X[..., 0] + 1), 0, 4)
    lines = [f"{int(y[q, d])} qid:{q} 1:{X[q, d, 0]} 2:{X[q, d, 1]} # d{d}" for q in range(queries)
             for d in range(documents)]  # fmt: skip
    (folder / "docs.svm").write_text("\n".join(lines))
    rows = ["query,doc,position,click,session"]
    for s in range(sessions):
        q = rng.integers(queries)
        order = np.argsort(-(by_relevance * X[q, :, 0] + rng.normal(size=documents)))
        clicks = PBM(eta=0.5).simulate(attraction(y[q, order])[None], seed=s)[0]
        rows += [f"{q},d{d},{k},{c},{s}" for k, (d, c) in enumerate(zip(order, clicks, strict=True), 1)]
    (folder / "clicks.csv").write_text("\n".join(rows))
    return y


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    write_log(folder)
    learned = fit_log(folder / "clicks.csv", folder / "ranker", features=folder / "docs.svm", **SMALL)
    return folder, learned


def test_a_fit_keeps_ranker_curve_and_results_and_scores_rank_well(fitted):
    folder, learned = fitted
    assert learned.curve.propensity.shape == (6,)
    assert (learned.curve.low <= learned.curve.high).all()
    assert learned.counts["lists"] == 300
    assert learned.counts["queries"] == 12
    said = json.loads((folder / "ranker/results.json").read_text())
    assert said["verdict"] == learned.verdict
    assert len((folder / "ranker/propensity.csv").read_text().splitlines()) == 7
    rows = score_documents(folder / "ranker", folder / "docs.svm")
    assert [r["score"] for r in rows] == load_ranker(folder / "ranker").predict(
        [[0, *map(float, (w.split(":")[1] for w in line.split()[2:4]))] for line in
         (folder / "docs.svm").read_text().splitlines()]).tolist()  # fmt: skip
    (folder / "scores.csv").write_text("query,doc,score\n" + "\n".join(f"{r['query']},{r['doc']},{r['score']}"
                                                                      for r in rows))  # fmt: skip
    assert evaluate_scores(folder / "scores.csv", folder / "docs.svm").mean("nDCG@10", empty="skip") > 0.85


def test_the_verdict_is_that_of_the_interval(fitted):
    _, learned = fitted
    changed = "Debiasing changed the ranking" in learned.verdict
    assert changed == (learned.excess[0] > 0)
    assert f"{learned.change:.3f}" in learned.verdict


def test_features_that_are_the_same_for_all_documents_of_a_query_are_refused(tmp_path):
    for feature in ("1", "{q}"):
        rows = [
            f"{s % 6},{d},{d},{int(d == 1 + s % 3)},{s},{feature.format(q=s % 6)}" for s in range(60) for d in (1, 2, 3)
        ]
        (tmp_path / "clicks.csv").write_text("\n".join(["query,doc,position,click,session,x", *rows]))
        with pytest.raises(ValueError, match="no feature differs between documents of one query"):
            fit_log(tmp_path / "clicks.csv", tmp_path / "ranker", **SMALL)
    assert not (tmp_path / "ranker").exists()


def test_positions_that_were_never_clicked_are_said_and_are_no_matter_of_the_cut():
    curve = PropensityCurve(propensity=np.array([1, 0, 0.5]), low=np.zeros(3), high=np.ones(3))
    notes = _notes(0.0, SimpleNamespace(empty_=0, cut_=0), curve, 10.0, {}, 1)
    assert any(note.startswith("1 positions were never clicked in training lists") for note in notes)
    assert not any("as rarely as" in note for note in notes)


def test_a_policy_that_ranks_by_relevance_is_warned_of_and_a_random_one_is_not(fitted, tmp_path):
    write_log(tmp_path, by_relevance=3.0)
    learned = fit_log(tmp_path / "clicks.csv", tmp_path / "ranker", features=tmp_path / "docs.svm", **SMALL)
    assert learned.agreement > 0.5
    assert any("logging policy confounds" in note and "2212.13937" in note for note in learned.notes)
    assert abs(fitted[1].agreement) < 0.2
    assert not any("confounds" in note for note in fitted[1].notes)


def test_grades_may_be_trecs_and_every_document_needs_both(tmp_path):
    (tmp_path / "scores.csv").write_text("query,doc,score\n1,a,0.5\n1,b,0.7\n")
    (tmp_path / "qrels.txt").write_text("1 0 a 1\n1 0 b -2\n")
    report = evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.txt")
    assert report.mean("nDCG@10", empty="skip") == pytest.approx(1 / np.log2(3))
    (tmp_path / "qrels.txt").write_text("1 0 a 1\n")
    with pytest.raises(ValueError, match="1 documents have no grade: the first is b of query 1"):
        evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.txt")
    (tmp_path / "qrels.txt").write_text("1 0 a 1\n1 0 b 0\n1 0 c 0\n")
    with pytest.raises(ValueError, match="1 documents have no score: the first is c"):
        evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.txt")


def test_scores_and_grades_are_finite_numbers_and_said_with_their_place(tmp_path):
    (tmp_path / "qrels.txt").write_text("# of 2008\n1 0 a 1\n1 0 b 0\n")
    for score, said in (("nan", "'nan'"), ("high", "'high'"), ("", "''")):
        (tmp_path / "scores.csv").write_text(f"query,doc,score\n1,a,0.5\n1,b,{score}\n")
        with pytest.raises(ValueError, match=f"line 3: 'score' is not a finite number: {said}"):
            evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.txt")
    (tmp_path / "scores.csv").write_text("query,doc,score\n1,a,0.5\n1,b,0.7\n")
    assert evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.txt").queries == 1
    for line in ("1 0 b nan", "1 b 0", "1 0 b 0 more"):
        (tmp_path / "qrels.txt").write_text(f"1 0 a 1\n{line}\n")
        with pytest.raises(ValueError, match="line 2: 'query 0 doc grade' is accepted, the grade a number"):
            evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.txt")
    (tmp_path / "qrels.txt").write_text("")
    with pytest.raises(ValueError, match="has no documents"):
        evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.txt")


def test_scores_may_be_a_trec_run_whose_scores_rank_not_its_ranks(tmp_path):
    (tmp_path / "qrels.txt").write_text("1 0 a 1\n1 0 b 0\n")
    (tmp_path / "run.txt").write_text("1 Q0 b 1 0.5 mine\n1 Q0 a 2 0.7 mine\n")
    assert evaluate_scores(tmp_path / "run.txt", tmp_path / "qrels.txt").mean("MRR", empty="skip") == 1
    for line, said in (
        ("1 Q0 a 2 0.7", "line 2: 'query Q0 doc rank score tag' is accepted, the score a number"),
        ("1 Q0 a 2 high mine", "line 2: .* the score a number"),
        ("1 Q0 b 2 0.7 mine", "line 2: document b of query 1 stands there twice"),
    ):
        (tmp_path / "run.txt").write_text(f"1 Q0 b 1 0.5 mine\n{line}\n")
        with pytest.raises(ValueError, match=said):
            evaluate_scores(tmp_path / "run.txt", tmp_path / "qrels.txt")
    (tmp_path / "run.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no lines"):
        evaluate_scores(tmp_path / "run.txt", tmp_path / "qrels.txt")


def test_lists_that_are_always_shown_in_one_order_leave_positions_unconnected_which_is_said(fitted, tmp_path):
    assert not any("positions fall into" in note for note in fitted[1].notes)
    rows = [f"{s % 6},{s % 6}-{d},{d},{int(d == 1 + s % 3)},{s},{s % 6 * d % 5}" for s in range(60) for d in (1, 2, 3)]
    (tmp_path / "clicks.csv").write_text("\n".join(["query,doc,position,click,session,bm25", *rows]))
    notes = fit_log(tmp_path / "clicks.csv", tmp_path / "ranker", **SMALL).notes
    assert any(note.startswith("positions fall into 3 groups") and "2309.15560" in note for note in notes)
    assert fit_log(tmp_path / "clicks.csv", tmp_path / "two", list_size=2, **SMALL).notes[0].startswith(
        "positions fall into 2 groups")  # fmt: skip


@pytest.mark.parametrize(
    ("moved", "groups"), [([], 4), ([(0, 2)], 3), ([(0, 2), (2, 4)], 2), ([(0, 3), (1, 4), (0, 4)], 1)]
)
def test_groups_of_positions_are_the_components_of_documents_seen_at_both(moved, groups):
    seen = [(d, d + 1) for d in range(4)] + moved
    document, position = np.array(seen).T
    assert groups_of_positions(document, position) == groups


def test_grades_may_be_a_table_and_say_the_same_as_lines(tmp_path):
    (tmp_path / "scores.csv").write_text("query,doc,score\n1,a,0.5\n1,b,0.7\n")
    (tmp_path / "qrels.txt").write_text("1 0 a 1\n1 0 b -2\n")
    (tmp_path / "qrels.tsv").write_text("doc\tgrade\tquery\nb\t-2\t1\na\t1\t1\n")
    lines, table = (evaluate_scores(tmp_path / "scores.csv", tmp_path / f"qrels.{kind}") for kind in ("txt", "tsv"))
    assert lines.rows(resamples=2)[0]["mean"] == table.rows(resamples=2)[0]["mean"]
    assert table.mean("MRR", empty="skip") == 0.5
    (tmp_path / "qrels.tsv").write_text("doc\tgrade\tquery\n")
    with pytest.raises(ValueError, match=r"qrels\.tsv has no rows"):
        evaluate_scores(tmp_path / "scores.csv", tmp_path / "qrels.tsv")


def test_a_folder_of_ultras_holds_the_features_of_a_log_and_grades_its_scores(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "ultra/train"
    folder.mkdir(parents=True)
    (tmp_path / "ultra/settings.json").write_text('{"feature_size": 2}')
    (folder / "train.feature").write_text("".join(f"d{i} 1:{rng.normal():.3f} 2:{i % 3}\n" for i in range(12)))
    (folder / "train.init_list").write_text("".join(f"q{q} {2 * q} {2 * q + 1}\n" for q in range(6)))
    (folder / "train.labels").write_text("".join(f"q{q} {q % 3} 0\n" for q in range(6)))
    rows = [f"q{s % 6},d{2 * (s % 6) + d},{d + 1},{int(s % 4 == d)},{s}" for s in range(60) for d in (0, 1)]
    (tmp_path / "clicks.csv").write_text("\n".join(["query,doc,position,click,session", *rows]))
    fit_log(tmp_path / "clicks.csv", tmp_path / "ranker", features=tmp_path / "ultra", **SMALL)
    scores = score_documents(tmp_path / "ranker", tmp_path / "ultra")
    assert len(scores) == 12
    write_rows(tmp_path / "scores.csv", scores)
    report = evaluate_scores(tmp_path / "scores.csv", tmp_path / "ultra/train")
    assert (report.queries, report.empty) == (6, 2)


def test_where_no_held_out_list_has_a_click_that_is_said(tmp_path):
    rows = [f"{s % 6},{s % 6}-{d},{d},{int(s % 6 == 1)},{s},{s % 6 * d % 5}" for s in range(60) for d in (1, 2, 3)]
    (tmp_path / "clicks.csv").write_text("\n".join(["query,doc,position,click,session,bm25", *rows]))
    learned = fit_log(tmp_path / "clicks.csv", tmp_path / "ranker", **SMALL)
    assert any("no held-out list has a click" in note for note in learned.notes)
    assert np.isnan(learned.curve.low).all()  # one query was clicked


def test_numbers_that_a_gap_made_decimal_name_the_same_queries_and_documents(tmp_path):
    pd.DataFrame({"query": [1.0, 1.0], "doc": [10.0, 11.0], "score": [2, 1]}).to_parquet(tmp_path / "scores.parquet")
    (tmp_path / "qrels.txt").write_text("1 0 10 1\n1 0 11 0\n")
    assert evaluate_scores(tmp_path / "scores.parquet", tmp_path / "qrels.txt").mean("MRR", empty="skip") == 1


def test_one_held_out_query_cannot_tell(tmp_path):
    write_log(tmp_path, queries=3, sessions=30)
    learned = fit_log(tmp_path / "clicks.csv", tmp_path / "ranker", features=tmp_path / "docs.svm", **SMALL)
    assert learned.verdict.startswith("One held-out query cannot tell whether debiasing changed the ranking (1 - ")
    assert json.loads((tmp_path / "ranker/results.json").read_text())["excess"] == [None, None]


def test_a_log_without_a_click_at_the_first_place_has_no_curve_and_says_so(tmp_path):
    rows = [f"{s % 6},{s % 6}-{d},{d},{int(d == 2 + s % 2)},{s},{s % 6 * d % 5}" for s in range(60) for d in (1, 2, 3)]
    (tmp_path / "clicks.csv").write_text("\n".join(["query,doc,position,click,session,bm25", *rows]))
    learned = fit_log(tmp_path / "clicks.csv", tmp_path / "ranker", **SMALL)
    assert np.isnan(learned.curve.propensity).all()
    assert any("no training list was clicked at its first place" in note for note in learned.notes)
    assert json.loads((tmp_path / "ranker/results.json").read_text())["propensity"]["propensity"] == [None] * 3


def test_a_curve_that_reaches_down_to_where_weights_are_cut_is_said():
    curve = PropensityCurve(propensity=np.array([1, 0.12, 0.02]), low=np.zeros(3), high=np.ones(3))
    ranker = SimpleNamespace(empty_=0, cut_=0)
    for most, said in ((10.0, "2 positions are looked at about as rarely as weights are cut (max_weight=10)"),
                       (50.0, "1 positions"), (100.0, None)):  # fmt: skip
        found = [note for note in _notes(0.0, ranker, curve, most, {}, 1) if "as rarely as" in note]
        assert [note.startswith(said) for note in found] == ([True] if said else [])


@pytest.mark.parametrize("ranker", ["dnn", "linear"])
def test_a_rate_of_its_own_decides_the_fit(tmp_path, ranker):
    write_log(tmp_path, sessions=40)
    told = {"ranker": ranker, "steps": 3, "resamples": 5, "features": tmp_path / "docs.svm"}
    default, same, other = (
        fit_log(tmp_path / "clicks.csv", tmp_path / f"r{rate}", learning_rate=rate, **told).ranker
        for rate in (None, {"dnn": 0.002, "linear": 0.01}[ranker], 0.1)
    )
    X = np.eye(3)
    assert np.array_equal(default.predict(X), same.predict(X))
    assert not np.array_equal(default.predict(X), other.predict(X))


def test_a_saved_ranker_predicts_the_same_and_broken_ones_are_refused(tmp_path):
    X = np.random.default_rng(0).normal(size=(8, 3))
    model = DualLearningRanker(hidden=(3,), steps=2, released=True, max_weight=None, max_norm=None)
    model.fit(X, [0, 1] * 4, query=np.repeat(range(4), 2))
    save_ranker(model, tmp_path / "a")
    again = load_ranker(tmp_path / "a")
    assert np.array_equal(again.predict(X), model.predict(X))
    assert np.array_equal(again.propensity_, model.propensity_)
    text = (tmp_path / "a/ranker.json").read_text()
    for old, new in (('"DualLearningRanker"', '"os.system"'), ('"features": 3', '"features": 4'), ("3\n  ]", "5\n  ]")):
        (tmp_path / "a/ranker.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match="holds a broken ranker"):
            load_ranker(tmp_path / "a")
    with pytest.raises(ValueError, match="not fitted"):
        save_ranker(NaiveRanker(), tmp_path / "b")
    for learn in (again.fit, again.partial_fit):
        with pytest.raises(ValueError, match="was loaded: it scores, and is not trained on"):
            learn(X, [0, 1] * 4, query=np.repeat(range(4), 2))


def test_too_few_queries_and_options_out_of_range_are_refused_before_work(tmp_path):
    write_log(tmp_path, queries=2, sessions=10)
    with pytest.raises(ValueError, match="2 queries: too few to hold out"):
        fit_log(tmp_path / "clicks.csv", tmp_path / "x", features=tmp_path / "docs.svm", **SMALL)
    for options, said in (
        ({"held_out": 1.0}, "held-out share is 1.0"),
        ({"ranker": "tree"}, "unknown ranker 'tree'"),
        ({"ranker": "linear", "hidden": (4,)}, "hidden layers are of dnn, and the network is linear"),
        ({"hidden": ()}, "hidden layers are none"),
        ({"hidden": (4, 0)}, "hidden layers are 4, 0: whole numbers from 1 on"),
        ({"hidden": (1.5,)}, "hidden layers are 1.5"),
        ({"learning_rate": 0}, "learning_rate=0: a number above 0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"max_weight": 0}, "max_weight=0: it has to be above 0"),
        ({"max_weight": float("nan")}, "max_weight=nan"),
    ):
        with pytest.raises(ValueError, match=said):
            fit_log(tmp_path / "clicks.csv", tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
