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
from rankwise.prompting.dq_lore import DQLoReSelector, Pairs, contrastive_loss, lore, scored_pairs, train_retriever
from rankwise.prompting.examples import Example, few_shot
from rankwise.prompting.language_model import Generation, Sampling, Score
from rankwise.prompting.selectors import BM25Selector, KNNSelector
from rankwise.spectral import truncated_svd
from small_models import bert, saved


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


def test_whoever_is_given_chooses_for_the_first_query_and_stays_as_it_is():
    first = BM25Selector(9)
    writer = Writer("qq times")
    selector = DQLoReSelector(writer, letters, 4, candidates=12, initial=2, first=first).fit(POOL)
    selector.select("sum 3?")
    expected = BM25Selector(2).fit(POOL).select("sum 3?")
    assert writer.prompts == [few_shot("sum 3?", expected, style="text").prompt]
    assert first.k_examples == 9
    assert not hasattr(first, "pool_")
    assert clone(selector).first.k_examples == 9


def test_whoever_chooses_for_the_first_query_is_given_again_to_a_saved_selector(tmp_path):
    selector = DQLoReSelector(Writer(), letters, 4, candidates=12, initial=2, first=BM25Selector()).fit(POOL)
    selector.save(tmp_path / "s")
    with pytest.raises(ValueError, match=r"a BM25Selector chose .* first="):
        DQLoReSelector.load(tmp_path / "s", Writer(), letters)
    DQLoReSelector.load(tmp_path / "s", None, letters)  # without a model there is no first query
    again = DQLoReSelector.load(tmp_path / "s", Writer(), letters, first=BM25Selector())
    for s in (selector, again):
        s.select("sum 3?")
    assert again.language_model.prompts == selector.language_model.prompts


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


def test_settings_are_these_where_none_are_given():
    assert DQLoReSelector().get_params() == {
        "language_model": None, "encoder": None, "k_examples": 8, "candidates": 64, "rank": None, "method": "pca",
        "similarity": "inner", "initial": 8, "first": None, "order": "ascending", "max_new_tokens": 64, "style": "text",
    }  # fmt: skip
    many = [Example(question=f"{'abcdefghij'[i // 8] * (i % 8 + 1)}?", answer="x") for i in range(80)]
    assert DQLoReSelector(None, letters).fit(many).rank_ == 16  # the paper's 16 of 64
    query, candidates = torch.randn(8), torch.randn(6, 8)
    torch.testing.assert_close(
        lore(query, candidates, 3), lore(query, candidates, 3, method="pca", similarity="inner", centre=True)
    )
    pairs = scored_pairs([Example(question=f"q{i}", answer=f"a{i % 7}") for i in range(60)], Writer(), queries=[0])
    assert pairs.positives.shape == pairs.negatives.shape == (1, 5)


def test_lore_takes_as_many_directions_as_there_are_points_and_gives_float64():
    query, candidates = torch.randn(8), torch.randn(3, 8)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert lore(query.to(dtype), candidates.to(dtype), 1).dtype == torch.float64
    torch.testing.assert_close(
        lore(query, candidates, 4, centre=False), (candidates @ query).double(), atol=1e-5, rtol=0
    )
    for rank in (0, -1, 5):
        with pytest.raises(ValueError, match=rf"rank={rank} is outside 1\.\.4 for 3 candidates and the query"):
            lore(query, candidates, rank)
    with pytest.raises(ValueError, match="did you mean cosine"):
        lore(query, candidates, 2, similarity="cosin")
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match="NaN or Inf"):
            lore(query, candidates.index_fill(1, torch.tensor([2]), bad), 2)


def test_candidates_that_are_all_alike_get_equal_scores():
    query, candidates = torch.ones(6), torch.ones(4, 6)
    for method in ("pca", "kernel-pca"):
        for similarity in ("inner", "cosine"):
            found = lore(query, candidates, 2, method=method, similarity=similarity)
            assert found.isfinite().all()
            assert (found == found[0]).all()


@pytest.mark.parametrize("method", ["pca", "kernel-pca"])
@pytest.mark.parametrize("similarity", ["inner", "cosine"])
def test_many_queries_are_scored_as_one_by_one_whatever_the_options(method, similarity):
    options = {"method": method, "similarity": similarity, "centre": method == "pca"}
    query, candidates = torch.randn(130, 6), torch.randn(130, 5, 6)
    alone = torch.stack([lore(q, c, 2, **options) for q, c in zip(query, candidates, strict=True)])
    torch.testing.assert_close(lore(query, candidates, 2, **options), alone)
    if similarity == "cosine":
        assert alone.abs().max() <= 1 + 1e-12


class Asked(Writer):
    """Remembers how it was asked."""

    def generate(self, prompts, sampling=None, *, on_result=None):
        self.sampling = sampling
        return super().generate(prompts, sampling)


@pytest.mark.parametrize("style", ["text", "chat"])
def test_the_first_query_is_a_prompt_of_the_nearest_examples(style):
    writer = Asked("zz")
    selector = DQLoReSelector(writer, letters, 4, candidates=12, initial=2, max_new_tokens=9, style=style).fit(POOL)
    nearest = KNNSelector(2, encoder=letters).fit(POOL).select("price of x?")
    assert selector.chains_of_thought(["price of x?"]) == ["zz"]
    assert writer.prompts == [few_shot("price of x?", nearest, style=style).prompt]
    assert writer.sampling == Sampling(max_new_tokens=9, stop=("\nQuestion:",))
    assert DQLoReSelector(None, letters, 4, candidates=12).fit(POOL).chains_of_thought(["a", "b"]) == ["", ""]
    assert selector.select_batch([]) == []


@pytest.mark.parametrize("method", ["pca", "kernel-pca"])
@pytest.mark.parametrize("similarity", ["inner", "cosine"])
def test_selection_is_lore_over_the_nearest_whatever_the_options(method, similarity):
    options = {"method": method, "similarity": similarity}
    selector = DQLoReSelector(None, letters, 5, candidates=7, rank=3, order="descending", **options).fit(POOL)
    X = letters([f"{e.question} {e.solution}" for e in POOL])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(selector.embeddings_, X)
    for query in ("a new sum?", POOL[4].question):
        q = letters([query])[0]
        q /= np.linalg.norm(q)
        near = [i for i in np.argsort(-(X @ q), kind="stable") if POOL[i].question != query]
        near = np.sort(near[:7])
        scores = lore(torch.from_numpy(q), torch.from_numpy(X[near]), 3, **options).numpy()
        assert selector.select(query) == [POOL[i] for i in near[np.argsort(-scores, kind="stable")][:5]]


def test_the_rank_lies_between_one_and_below_the_candidates():
    for rank in (1, 11):
        assert DQLoReSelector(None, letters, candidates=12, rank=rank).fit(POOL).rank_ == rank
    for rank in (0, 12):
        with pytest.raises(ValueError, match=f"rank={rank} with 12 candidates: 1 to 11"):
            DQLoReSelector(None, letters, candidates=12, rank=rank).fit(POOL)
        assert DQLoReSelector(None, letters, candidates=12, rank=rank, method="none").fit(POOL)  # needs none
    for options, message in (
        ({"similarity": "cosin"}, "did you mean cosine"),
        ({"initial": 0}, "initial=0"),
    ):
        with pytest.raises(ValueError, match=message):
            DQLoReSelector(None, letters, candidates=12, **options).fit(POOL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DQLoReSelector(None, letters, candidates=18).fit(POOL)
    with pytest.warns(UserWarning, match="candidates=19 of a pool of 18 questions") as record:
        DQLoReSelector(None, letters, candidates=19).fit(POOL)
    assert record[0].filename == __file__


def test_a_saved_selector_holds_its_settings_its_pool_and_its_embeddings(tmp_path):
    options = {
        "candidates": 12, "rank": 4, "method": "kernel-pca", "similarity": "cosine", "initial": 2,
        "order": "descending", "max_new_tokens": 5, "style": "chat",
    }  # fmt: skip
    selector = DQLoReSelector(None, letters, 3, **options).fit(POOL)
    selector.save(tmp_path / "s")
    kept = np.load(tmp_path / "s" / "embeddings.npy")
    assert kept.dtype == np.float16
    np.testing.assert_allclose(kept, selector.embeddings_, atol=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "s" / "pool.jsonl").read_text().splitlines()]
    assert rows == [{"question": e.question, "answer": e.answer, "rationale": e.rationale} for e in POOL]
    assert not (tmp_path / "s" / "encoder").exists()
    writer = Asked("zz")
    again = DQLoReSelector.load(tmp_path / "s", writer, letters)
    assert again.get_params() == {**selector.get_params(), "language_model": writer}
    assert again.pool_ == POOL
    assert again.embeddings_.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(again.embeddings_, axis=1), 1, rtol=1e-6)
    calls = []
    again = DQLoReSelector.load(tmp_path / "s", encoder=lambda t: calls.append(t) or letters(t))
    assert not calls  # nothing is embedded again
    assert again.select("a new sum?") == selector.select("a new sum?")
    again.fit(POOL[:14])  # but for another pool
    assert len(again.embeddings_) == 14
    (tmp_path / "s" / "pool.jsonl").write_text("\n".join(json.dumps(r) for r in rows[:-1]))
    with pytest.raises(ValueError, match="18 embeddings for a pool of 17"):
        DQLoReSelector.load(tmp_path / "s", encoder=letters)


def test_candidates_of_a_pair_share_the_most_words_and_the_models_scores_order_them():
    solutions = ["aa bb cc dd", "zz", "aa bb cc x1", "aa x2 x3 x4", "bb aa x5 x6", "aa bb cc dd", "yy"]
    pool = [Example(question=f"q{i}?", answer=a) for i, a in enumerate(solutions)]
    helpful = {5: -3.0, 2: -1.0, 4: -4.0, 3: -2.0}
    seen = []

    class Told(Writer):
        def score(self, prompts, continuations, *, on_result=None):
            seen.extend(zip(prompts, continuations, strict=True))
            shown = [next(i for i in range(7) if p.startswith(f"Question: q{i}?")) for p in prompts]
            return [[Score(logprobs=(2 * helpful[j], 0.0))] for j in shown]

    pairs = scored_pairs([e.__dict__ for e in pool], Told(), candidates=4, top=2, queries=[0])
    expected = [few_shot("q0?", [pool[j]], style="text").prompt for j in (5, 2, 4, 3)]
    assert [p for p, _ in seen] == expected  # by the words they share
    assert [c for _, c in seen] == [[" aa bb cc dd"]] * 4
    assert pairs.positives.tolist() == [[2, 3]]
    assert pairs.negatives.tolist() == [[5, 4]]  # the worst last
    every = scored_pairs(POOL, Writer(), candidates=12, top=2)
    assert every.queries.tolist() == list(range(18))
    assert scored_pairs(pool, Writer(), candidates=99, top=3, queries=[2]).positives.shape == (1, 3)  # 6 there are
    with pytest.raises(ValueError, match="6 candidates of a pool of 7 for 4 positives"):
        scored_pairs(pool, Writer(), candidates=99, top=4)
    with pytest.warns(UserWarning, match="1 of 2 solutions share no word") as record:
        scored_pairs(pool, Writer(), candidates=6, top=1, queries=[0, 1])
    assert record[0].filename == __file__


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(saved(bert(), tmp_path_factory.mktemp("bert")))


class Watched(torch.optim.AdamW):
    """Remembers learning rates and the size of gradients."""

    seen: list

    def step(self, closure=None):
        parts = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        Watched.seen.append((self.param_groups[0]["lr"], float(torch.stack(parts).norm())))
        return super().step(closure)


WORDS = ["great", "awful", "film", "number", "fine", "poor", "good", "bad", "quiet", "triumph", "warmth", "dull",
         "hello", "there", "positive", "negative"]  # fmt: skip
TRAINED = [Example(question=f"{WORDS[i % 16]} {i % 10} {WORDS[i % 7]}", answer=str(i // 16)) for i in range(24)]
HARD = Pairs(
    queries=np.arange(24),
    positives=np.stack([(np.arange(24) + 1) % 24, (np.arange(24) + 2) % 24], 1),
    negatives=np.stack([(np.arange(24) + 9) % 24, (np.arange(24) + 11) % 24], 1),
)


@pytest.fixture
def watched(monkeypatch):
    """What the encoder reads, in which mode, and every loss."""
    Watched.seen, read, losses, vectors = [], [], [], TextEncoder.vectors

    def reading(self, texts):
        read.append((self.model.training, texts))
        return vectors(self, texts)

    def losing(*parts, scale=1.0):
        found = contrastive_loss(*parts, scale=scale)
        losses.append((scale, float(found.detach())))
        return found

    monkeypatch.setattr(TextEncoder, "vectors", reading)
    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    monkeypatch.setattr("rankwise.prompting.dq_lore.contrastive_loss", losing)
    return read, losses


def trained(encoder, **options):
    options = {"epochs": 3, "batch_size": 4, "validation": 1 / 3, "learning_rate": 1e-3, "max_length": 12} | options
    return train_retriever(TRAINED, HARD, encoder=encoder, **options)


def test_training_shows_every_query_once_an_epoch_with_one_of_its_own_positives_and_negatives(tiny, watched):
    read, losses = watched
    steps = []
    encoder = trained(tiny, warmup=0.25, scale=7.0, patience=9, on_step=lambda *told: steps.append(told))
    assert not encoder.model.training
    assert encoder.max_length == 12
    modes = [training for training, _ in read]
    assert modes == [False] * 2 + ([True] * 4 + [False] * 2) * 3  # eight queries are held out, two batches of them
    texts = [f"{e.question} {e.solution}" for e in TRAINED]
    seen = {True: [], False: []}
    for training, shown in read:
        queries, positives, negatives = ([texts.index(t) for t in shown[k : k + 4]] for k in (0, 4, 8))
        assert len(shown) == 12
        for q, p, n in zip(queries, positives, negatives, strict=True):
            assert p in HARD.positives[q]
            assert n in HARD.negatives[q]
            seen[training].append((q, p, n))
    held = {q for q, _, _ in seen[False]}
    assert len(held) == 8
    epochs = [seen[True][k : k + 16] for k in range(0, 48, 16)]
    assert all({q for q, _, _ in epoch} == set(range(24)) - held for epoch in epochs)
    assert [q for q, _, _ in epochs[0]] != [q for q, _, _ in epochs[1]]  # in another order
    assert len({p - q for q, p, _ in seen[True]} & {1, 2}) == 2  # now one positive, now the other
    assert len({n - q for q, _, n in seen[True]} & {9, 11}) == 2
    assert seen[False][:8] == seen[False][8:16] == seen[False][16:24]  # always judged by the same
    assert [(step, of) for step, of, _ in steps] == [(k, 12) for k in range(1, 13)]
    during = [loss for (scale, loss), training in zip(losses, modes, strict=True) if training]
    assert [loss for _, _, loss in steps] == during
    assert {scale for scale, _ in losses} == {7.0}
    rates = [rate for rate, _ in Watched.seen]
    assert rates == pytest.approx([1e-3 * (t / 3 if t < 3 else (12 - t) / 9) for t in range(12)])
    assert max(norm for _, norm in Watched.seen) <= 1 + 1e-5
    trained(tiny, scale=200.0)
    assert max(norm for _, norm in Watched.seen) == pytest.approx(1, abs=1e-5)  # clipped


def test_training_ends_when_nothing_held_out_gets_better_and_keeps_the_best(tiny, watched):
    read, losses = watched
    start = TextEncoder(tiny)(["great film"])
    for patience in (1, 2, 3):
        read.clear()
        same = trained(tiny, epochs=6, learning_rate=0.0, patience=patience)
        assert sum(training for training, _ in read) == 4 * patience
        assert np.array_equal(same(["great film"]), start)
    read.clear()
    losses.clear()
    best = trained(tiny, epochs=8, learning_rate=0.03, patience=9)
    judged = [loss for (_, loss), (training, _) in zip(losses, read, strict=True) if not training]
    judged = np.array(judged).reshape(-1, 2).mean(1)
    assert len(judged) == 9
    assert judged.min() < judged[-1]  # it got worse in the end
    held = [texts for training, texts in read if not training][:2]
    with torch.no_grad():
        again = [float(contrastive_loss(*best.vectors(t).split(4), scale=20.0)) for t in held]
    assert np.mean(again) == pytest.approx(judged.min(), rel=1e-5)


def test_training_without_anything_held_out_goes_on_to_the_end_and_a_seed_decides_it(tiny, watched):
    read, _ = watched
    first, again, other = (trained(tiny, validation=0.0, seed=seed)(["great film"]) for seed in (0, 0, 1))
    assert [training for training, _ in read] == [True] * 3 * 18
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, TextEncoder(tiny)(["great film"]))
    assert trained(tiny, validation=0.0, batch_size=24, epochs=1)
    with pytest.raises(ValueError, match="16 queries to train on are fewer than batch_size=17"):
        trained(tiny, batch_size=17)


def test_training_has_these_settings_where_none_are_given(tiny, watched):
    read, losses = watched
    encoder = train_retriever(TRAINED, HARD, encoder=tiny)
    assert [training for training, _ in read] == [False] + [True, False] * 5  # 22 queries, a batch of 16
    assert len(read[1][1]) == 3 * 16
    assert {scale for scale, _ in losses} == {20.0}
    assert encoder.max_length == 32  # the positions that the tiny model has, of 128
    rates = [rate for rate, _ in Watched.seen]  # of 5 steps none warms up: a tenth is half a step
    assert rates == pytest.approx([2e-5 * (5 - t) / 5 for t in range(5)])
    read.clear()
    train_retriever(TRAINED, HARD, encoder=tiny, learning_rate=0.0)
    assert sum(training for training, _ in read) == 2  # epochs without anything better
