import json
import math
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from prompting.test_selectors import letters
from rankwise.models.embedding import TextEncoder
from rankwise.prompting.dq_lore import DQLoReSelector, contrastive_loss, lore, scored_pairs, train_retriever
from rankwise.prompting.examples import Example
from rankwise.prompting.language_model import Generation, Score
from rankwise.spectral import truncated_svd


def projected(query, candidates, rank, centre=True):
    """LoRe as the equations say: SVD of the centred rows, projection, inner products."""
    X = np.vstack([candidates, query])
    X = X - X.mean(0) if centre else X
    Z = X @ np.linalg.svd(X, full_matrices=False)[2][:rank].T
    return Z[:-1] @ Z[-1]


@given(st.integers(0, 50), st.integers(3, 12), st.integers(2, 20), st.booleans())
def test_scores_are_inner_products_of_the_projections(seed, M, d, centre):
    g = torch.Generator().manual_seed(seed)
    query, candidates = torch.randn(4, d, generator=g), torch.randn(4, M, d, generator=g)
    rank = 1 + seed % min(M, d)
    got = lore(query, candidates, rank, centre=centre)
    for b in range(4):
        expected = projected(query[b].double().numpy(), candidates[b].double().numpy(), rank, centre)
        np.testing.assert_allclose(got[b], expected, atol=1e-6 * d)


def test_full_rank_without_centring_is_nearest_neighbours_by_inner_product():
    query, candidates = torch.randn(8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    torch.testing.assert_close(lore(query, candidates, 7, centre=False), candidates @ query)


def test_a_candidate_that_repeats_the_query_scores_its_square_and_moves_no_other():
    query, candidates = torch.randn(8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    alone = lore(query, candidates, 7, centre=False)
    more = lore(query, torch.cat([candidates, query[None]]), 8, centre=False)
    torch.testing.assert_close(more[:-1], alone)
    torch.testing.assert_close(more[-1], query @ query)
    assert int(lore(query, torch.cat([candidates, query[None]]), 8, similarity="cosine").argmax()) == 6


def test_projections_give_the_best_approximation_of_the_gram_matrix():
    X = torch.randn(9, 20, dtype=torch.float64)
    X -= X.mean(0)
    best = truncated_svd(X @ X.mT, 3, method="full")
    expected = (best.U * best.S @ best.Vh)[-1, :-1]
    torch.testing.assert_close(lore(X[-1], X[:-1], 3), expected, atol=1e-6, rtol=0)
    assert torch.linalg.matrix_rank(best.U * best.S @ best.Vh) == 3


def test_a_shared_nuisance_of_large_norm_no_longer_decides():
    rng = np.random.default_rng(0)
    M, d = 40, 64
    signal = np.linspace(1, 0, M)  # the planted order
    direction, nuisance = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    nuisance_size = 10 + rng.normal(size=M)  # shared, and of varying size
    noise = 0.02 * rng.normal(size=(M, d))
    X = signal[:, None] * direction + nuisance_size[:, None] * nuisance + noise
    query = direction * 2 + nuisance_size.mean() * nuisance
    found = lore(torch.from_numpy(query), torch.from_numpy(X), 2).numpy()
    nearest = X @ query
    assert np.corrcoef(signal, found)[0, 1] > 0.99 > 0.5 > np.corrcoef(signal, nearest)[0, 1]


def test_sign_and_rotation_of_the_space_change_nothing():
    query, candidates = torch.randn(10, dtype=torch.float64), torch.randn(7, 10, dtype=torch.float64)
    R = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    torch.testing.assert_close(lore(query @ R, candidates @ R, 3), lore(query, candidates, 3))
    torch.testing.assert_close(lore(-query, -candidates, 3), lore(query, candidates, 3))


def test_kernel_pca_agrees_with_scikit_learn():
    from sklearn.decomposition import KernelPCA

    X = np.random.default_rng(0).normal(size=(12, 5))
    distance = np.linalg.norm(X[:, None] - X[None], axis=-1)[np.triu_indices(12, 1)]
    width = np.sort(distance)[(len(distance) - 1) // 2]
    Z = KernelPCA(4, kernel="rbf", gamma=1 / (2 * width**2)).fit_transform(X)
    got = lore(torch.from_numpy(X[-1]), torch.from_numpy(X[:-1]), 4, method="kernel-pca")
    np.testing.assert_allclose(got, Z[:-1] @ Z[-1], atol=1e-8)
    cosine = lore(torch.from_numpy(X[-1]), torch.from_numpy(X[:-1]), 4, method="kernel-pca", similarity="cosine")
    unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine, unit[:-1] @ unit[-1], atol=1e-8)


def test_many_queries_are_scored_as_one_by_one():
    query, candidates = torch.randn(150, 6), torch.randn(150, 5, 6)
    alone = torch.stack([lore(q, c, 2) for q, c in zip(query, candidates, strict=True)])
    torch.testing.assert_close(lore(query, candidates, 2), alone)


def test_bad_input_of_lore():
    with pytest.raises(ValueError, match="rank=9"):
        lore(torch.randn(4), torch.randn(3, 4), 9)
    with pytest.raises(ValueError, match="NaN"):
        lore(torch.tensor([float("nan")] * 4), torch.randn(3, 4), 2)
    with pytest.raises(ValueError, match="method"):
        lore(torch.randn(4), torch.randn(3, 4), 2, method="mds")


class Writer:
    """Writes a chain of thought that names what the question needs; scores by shared words."""

    name, context = "writer", None

    def __init__(self, text="x"):
        self.text, self.prompts = text, []

    def generate(self, prompts, sampling=None, *, on_result=None):
        self.prompts += prompts
        said = Generation(text=self.text, tokens=(), logprobs=(), top_logprobs=(), special=(), prompt_tokens=1)
        return [said] * len(prompts)

    def score(self, prompts, continuations, *, on_result=None):
        found = []
        for prompt, (solution,) in zip(prompts, continuations, strict=True):
            shown = prompt.split("\n\n")[0].split()
            found.append([Score(logprobs=(float(len(set(shown) & set(solution.split()))), 0.0))])
        return found

    def count_tokens(self, prompt):
        return len(str(prompt))


POOL = [
    Example(question=f"{w} {i}?", answer=str(i), rationale=f"{r} {'abc'[i % 3] * i}")
    for i, (w, r) in enumerate([("sum", "zz plus"), ("area", "qq times"), ("price", "kk minus")] * 6)
]


def test_the_second_query_goes_by_what_the_model_wrote():
    writer = Writer("qq times qq times qq times qq")
    selector = DQLoReSelector(writer, letters, 4, candidates=12, method="none", initial=2).fit(POOL)
    chosen = selector.select("price of x?")
    assert len(writer.prompts) == 1
    assert writer.prompts[0].count("Question:") == 3
    assert sum("qq" in e.rationale for e in chosen) >= 3
    alone = DQLoReSelector(None, letters, 4, candidates=12, method="none").fit(POOL).select("price of x?")
    assert alone != chosen
    assert selector.fallbacks_ == 0
    silent = DQLoReSelector(Writer("  "), letters, 4, candidates=12, method="none").fit(POOL)
    assert silent.select("price of x?") == alone
    assert silent.fallbacks_ == 1


def test_selection_is_lore_over_the_nearest():
    selector = DQLoReSelector(None, letters, 5, candidates=10, rank=4, order="descending").fit(POOL)
    X = letters([f"{e.question} {e.solution}" for e in POOL])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    q = letters(["a new sum?"])[0]
    q /= np.linalg.norm(q)
    near = np.sort(np.argsort(-(X @ q), kind="stable")[:10])
    best = near[np.argsort(-projected(q, X[near], 4), kind="stable")][:5]
    assert selector.select("a new sum?") == [POOL[i] for i in best]
    none = clone(selector).set_params(method="none").fit(POOL)
    assert none.select("a new sum?") == [POOL[i] for i in np.argsort(-(X @ q), kind="stable")[:5]]
    assert selector.select_batch(["a new sum?", "area?"])[1] == selector.select("area?")
    assert POOL[0] not in selector.select(POOL[0].question)


def test_settings_that_cannot_reduce_anything_are_refused():
    with pytest.raises(ValueError, match="1 to 17"):
        DQLoReSelector(None, letters, rank=18, candidates=18).fit(POOL)
    with pytest.warns(UserWarning, match="all of it"):
        assert len(DQLoReSelector(None, letters, 3, candidates=64, rank=4).fit(POOL).select("x")) == 3
    with pytest.raises(ValueError, match="did you mean text"):
        DQLoReSelector(None, letters, style="texxt", candidates=18).fit(POOL)
    with pytest.raises(ValueError, match="candidates=0"):
        DQLoReSelector(None, letters, candidates=0).fit(POOL)
    with pytest.raises(ValueError, match="did you mean pca"):
        DQLoReSelector(None, letters, method="pcaa", candidates=18).fit(POOL)


def test_a_saved_selector_selects_the_same(tmp_path):
    selector = DQLoReSelector(None, TextEncoder(), 3, candidates=12, rank=4).fit(POOL)
    selector.save(tmp_path / "s")
    again = DQLoReSelector.load(tmp_path / "s")
    assert again.select_batch(["a sum?", "an area?"]) == selector.select_batch(["a sum?", "an area?"])
    assert json.loads((tmp_path / "s" / "settings.json").read_text())["rank"] == 4
    assert (tmp_path / "s" / "encoder" / "model.safetensors").is_file()


def test_contrastive_loss_by_its_definition_and_its_gradient():
    q, p, n = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(3))
    expected = 0.0
    for i in range(5):
        all_ = [torch.exp(0.5 * q[i] @ v) for v in (*p, *n)]
        expected = expected - torch.log(all_[i] / sum(all_)) / 5
    torch.testing.assert_close(contrastive_loss(q, p, n, scale=0.5), expected)
    assert torch.autograd.gradcheck(lambda *x: contrastive_loss(*x, scale=2.0), (q, p, n))
    same = torch.ones(6, 4)
    assert float(contrastive_loss(same, same, same)) == pytest.approx(math.log(12))


def test_pairs_are_what_the_model_finds_helpful_and_never_the_query_itself():
    pairs = scored_pairs(POOL, Writer(), candidates=12, top=3, queries=[0, 4])
    assert pairs.queries.tolist() == [0, 4]
    for k, i in enumerate(pairs.queries):
        chosen = {*pairs.positives[k], *pairs.negatives[k]}
        assert i not in chosen
        assert len(chosen) == 6
    word = POOL[0].rationale.split()[0]
    assert all(word in POOL[j].rationale for j in pairs.positives[0])
    writer = Writer()
    writer.score = lambda prompts, given: [[Score(logprobs=(math.nan,))]] * len(prompts)
    with pytest.raises(ValueError, match="not a number"):
        scored_pairs(POOL, writer, candidates=12, top=3)
    with pytest.raises(ValueError, match="12 positives"):
        scored_pairs(POOL, Writer(), candidates=12, top=12)


def test_training_brings_helpful_examples_nearer():
    topics = ["tax", "sea", "war", "art", "law", "sun", "oil", "tea", "cat", "fog", "jam", "zoo"]
    pool = [Example(question=f"q{i}?", answer=str(i), rationale=f"about {topics[i % 12]} it is") for i in range(24)]
    pairs = scored_pairs(pool, Writer(), candidates=23, top=1)
    assert all(abs(i - j) == 12 for i, (j,) in zip(pairs.queries, pairs.positives, strict=True))
    losses = []
    trained = train_retriever(
        pool, pairs, epochs=4, batch_size=8, validation=0.0, max_length=16, learning_rate=2e-4,
        on_step=lambda s, n, loss: losses.append(loss),
    )  # fmt: skip
    texts = [f"{e.question} {e.solution}" for e in pool]

    def margin(encoder):
        X = encoder(texts)
        return float(((X[pairs.positives[:, 0]] - X[pairs.negatives[:, 0]]) * X[pairs.queries]).sum(1).mean())

    assert len(losses) == 12
    assert margin(trained) > margin(TextEncoder(max_length=32)) + 0.1
    with pytest.raises(ValueError, match="batch_size=64"):
        train_retriever(pool, pairs, batch_size=64)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_the_defaults_serve_small_pools(size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        selector = DQLoReSelector(Writer("plus"), letters).fit(POOL[:size])
        found = selector.select_batch(["a new sum?", POOL[0].question])
    assert selector.rank_ == min(max(1, size // 4), size - 1)
    assert len(found[0]) == min(8, size)
    assert len(found[1]) == min(8, size - 1)
    assert POOL[0] not in found[1]
    assert DQLoReSelector(None, letters, candidates=18).fit(POOL).rank_ == 4


def test_a_pool_of_duplicates_is_looked_through_as_quickly_as_its_questions():
    rng = np.random.default_rng(0)
    many = [Example(question=f"q{i % 2000}?", answer="x") for i in range(6000)]
    vectors = {f"q{i}?": rng.normal(size=8) for i in range(2000)}

    def encoder(texts):
        return np.stack([vectors[t.split(" ")[0]] for t in texts])

    selector = DQLoReSelector(None, encoder, 8, candidates=64).fit(many)
    asked = [f"q{i}?" for i in range(50)]
    start = time.process_time()
    found = selector.select_batch(asked)
    assert time.process_time() - start < 2  # a millisecond or so each; with every duplicate looked at, a second
    once = DQLoReSelector(None, encoder, 8, candidates=64).fit(many[:2000]).select_batch(asked)
    assert found == once
    assert all(len({e.question for e in examples} - {q}) == 8 for q, examples in zip(asked, found, strict=True))


def test_a_question_too_long_for_the_first_query_is_looked_up_alone():
    writer = Writer("zz")
    writer.context = 400
    selector = DQLoReSelector(writer, letters, 3, candidates=12, initial=1, max_new_tokens=10).fit(POOL)
    asked = ["a new sum?", "area " * 100, "price?"]
    assert selector.chains_of_thought(asked) == ["zz", "", "zz"]
    assert len(selector.select_batch(asked)) == 3
    assert selector.fallbacks_ == 1


def test_solutions_without_a_word_in_common_are_counted():
    pool = [Example(question=f"q{i}?", answer=w) for i, w in enumerate(["aa", "bb", "cc", "aa"])]
    with pytest.warns(UserWarning, match="2 of 4 solutions share no word"):
        scored_pairs(pool, Writer(), candidates=3, top=1)


def test_a_folder_that_is_no_saved_selector_is_named(tmp_path):
    selector = DQLoReSelector(None, letters, 3, candidates=12).fit(POOL)
    selector.save(tmp_path / "s")
    (tmp_path / "s" / "settings.json").write_text('{"k_examples": 3, "__class__": "os"}')
    with pytest.raises(ValueError, match=r"settings\.json holds k_examples, __class__"):
        DQLoReSelector.load(tmp_path / "s", encoder=letters)
