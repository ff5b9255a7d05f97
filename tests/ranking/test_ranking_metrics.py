"""Metrics against scikit-learn, sums written out, and closed forms."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, log_loss, ndcg_score

from rankwise.ranking import (
    click_log_likelihood,
    err,
    mean_over_queries,
    mrr,
    ndcg,
    place_log_likelihood,
    ranking_report,
)


def queries(seed=0, ties=True):
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(40), rng.integers(2, 15, size=40))
    y = rng.integers(0, 5, size=len(query)).astype(float)
    s = rng.normal(size=len(query)).round(0 if ties else 6)
    order = rng.permutation(len(query))
    return y[order], s[order], query[order]


@pytest.mark.parametrize("k", [1, 3, 10, None])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_ndcg_is_scikit_learns_with_ties_averaged(k, ties, gain):
    y, s, query = queries(ties=ties)
    found = ndcg(y, s, query=query, k=k, gain=gain)
    for q in range(40):
        own = query == q
        gains = 2 ** y[own] - 1 if gain == "exponential" else y[own]
        if gains.any():
            assert found[q] == pytest.approx(ndcg_score([gains], [s[own]], k=k))
        else:
            assert np.isnan(found[q])


def test_err_and_mrr_are_their_sums_and_equal_scores_stand_at_their_worst():
    y, s, query = queries()
    errs, rrs = err(y, s, query=query, k=5), mrr(y, s, query=query, k=5)
    for q in range(40):
        own = sorted(zip(-s[query == q], y[query == q], strict=True))
        left, total = 1.0, 0.0
        for i, (_, grade) in enumerate(own[:5], 1):
            r = (2**grade - 1) / 16
            total += left * r / i
            left *= 1 - r
        assert errs[q] == pytest.approx(total)
        places = [i for i, (_, grade) in enumerate(own, 1) if grade > 0]
        if places:
            assert rrs[q] == (1 / places[0] if places[0] <= 5 else 0)
        else:
            assert np.isnan(rrs[q])


def test_ten_places_count_by_default_and_for_mrr_all():
    y, s = np.r_[np.zeros(10), 1.0], -np.arange(11.0)
    query = np.zeros(11)
    assert (ndcg(y, s, query=query)[0], err(y, s, query=query)[0]) == (0, 0)
    assert mrr(y, s, query=query)[0] == 1 / 11
    assert ndcg(y[1:], s[1:], query=query[1:])[0] == pytest.approx(1 / np.log2(11))
    assert err(y[1:], s[1:], query=query[1:])[0] == pytest.approx(1 / 16 / 10)


def test_mrr_is_scikit_learns_average_precision_where_one_document_is_relevant():
    rng = np.random.default_rng(0)
    y, s = np.eye(9, dtype=int)[rng.integers(0, 9, 30)], rng.normal(size=(30, 9))
    found = mrr(y.ravel(), s.ravel(), query=np.repeat(np.arange(30), 9))
    assert found == pytest.approx([label_ranking_average_precision_score(y[[i]], s[[i]]) for i in range(30)])
    assert found.mean() == pytest.approx(label_ranking_average_precision_score(y, s))


def test_queries_without_a_relevant_document_are_left_out_or_count_0_as_said():
    report = ranking_report([0, 1, 0, 0], [2.0, 1.0, 3.0, 4.0], query=["a", "a", "b", "b"])
    assert (report.queries, report.empty) == (2, 1)
    for name in report.values:
        skip, zero = (report.mean(name, empty=e) for e in ("skip", "zero"))
        assert zero == skip / 2
    rows = report.rows(resamples=50)
    assert [r["metric"] for r in rows] == ["nDCG@1", "nDCG@3", "nDCG@5", "nDCG@10", "ERR@10", "MRR"]
    assert rows[-1]["mean"] == 0.5
    assert rows[-1]["mean_empty_zero"] == 0.25
    assert np.isnan(mean_over_queries([np.nan], empty="skip"))
    assert mean_over_queries([1, None], empty="zero") == 0.5
    with pytest.raises(ValueError, match="unknown treatment of empty queries 'drop'"):
        mean_over_queries([1.0], empty="drop")


def test_a_report_without_a_relevant_document_has_no_means_no_intervals_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = ranking_report([0, 0], [2.0, 1.0], query=[0, 1]).rows(resamples=3)
    for row in rows:
        assert np.isnan([row["mean"], row["low"], row["high"]]).all()
        assert row["mean_empty_zero"] == 0


def test_err_of_a_report_takes_the_largest_grade_that_is_there_for_the_best_and_at_least_1():
    for grades, found in (([1, 0], 1 / 2), ([2, 0], 3 / 4), ([1, 2], 1 / 4 + 3 / 4 * 3 / 4 / 2)):
        assert ranking_report(grades, [2.0, 1.0], query=[0, 0]).mean("ERR@10", empty="skip") == pytest.approx(found)
    assert ranking_report([1, 0], [2.0, 1.0], query=[0, 0], max_grade=4).mean("ERR@10", empty="skip") == 1 / 16
    assert np.isnan(ranking_report([0, 0], [2.0, 1.0], query=[0, 0]).mean("ERR@10", empty="skip"))


def test_click_likelihoods_are_log_loss_and_the_log_of_a_softmax():
    rng = np.random.default_rng(0)
    p, c = rng.uniform(0.1, 0.9, (20, 4)), rng.random((20, 4)) < 0.4
    mask = np.arange(4) < rng.integers(1, 5, (20, 1))
    assert click_log_likelihood(p, c, mask) == pytest.approx(-log_loss(c[mask], p[mask]))
    z = rng.normal(size=(20, 4))
    found = place_log_likelihood(z, c, mask)
    for i in range(20):
        own = mask[i]
        log = np.log(np.exp(z[i, own]) / np.exp(z[i, own]).sum())
        if c[i, own].any():
            assert found[i] == pytest.approx(log[c[i, own]].mean())
        else:
            assert np.isnan(found[i])


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="a score is NaN"):
        ndcg([0, 1], [0.0, np.nan], query=[0, 0])
    for grade, said in ((-1, "-1"), (np.nan, "nan"), (np.inf, "inf"), (101, "101")):
        with pytest.raises(ValueError, match=f"a grade is {said}: numbers from 0 to 100 are accepted"):
            mrr([grade, 1], [0.0, 1.0], query=[0, 0])
    assert ndcg([100, 0], [0.0, 1.0], query=[0, 0]) == pytest.approx(1 / np.log2(3))
    for most in (np.nan, 2000):
        with pytest.raises(ValueError, match=f"a grade is 1, and max_grade is {most}: from that grade to 100"):
            err([1], [1.0], query=[0], max_grade=most)
    with pytest.raises(ValueError, match="a grade is 5, and max_grade is 4"):
        err([5], [1.0], query=[0])
    with pytest.raises(ValueError, match="at least one row"):
        ndcg([], [], query=[])
    with pytest.raises(ValueError, match="unknown gain"):
        ndcg([1], [1.0], query=[0], gain="log")
