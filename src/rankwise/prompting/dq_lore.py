"""DQ-LoRe: two queries, and a low-rank re-ranking of what the second one finds.

1. *First query*: with examples whose questions lie near, the language model writes a chain of thought ĉ for question x.
2. *Second query*: ``x + ĉ`` is encoded and compared with every example's ``x_i + c_i``: the nearest M.
3. *LoRe*: with the candidates' and the query's embeddings as rows of X ((M + 1, d)), columns centred to X_c,

       X_c = U S Vᵀ,    Z = X_c V_k,    score_i = z_query · z_i

   so that what all M share (they were chosen for being alike) no longer decides, nor do the least directions.

``Z Zᵀ = U_k S_k² U_kᵀ`` is the best rank-k approximation of the Gram matrix ``X_c X_cᵀ``, so the scores are a row of
it: an eigenproblem of (M + 1) rows, for many queries at once; with another kernel's Gram matrix it is kernel PCA.

The encoder is trained (`train_retriever`) on what the language model says of examples: the log-probability of ``c_i``
given example j and ``x_i`` tells which j are positives and which are negatives of i.

Source: Xiong, Li, Zheng, Guo et al., "DQ-LoRe", ICLR 2024, arXiv 2310.02954.

What people get wrong: the released code's re-ranking takes rows of Vᵀ cut to k features, not projections of the
examples. With M + 1 points and k ≥ M nothing is reduced: k has to be below M. Rows are normalised first, then centred.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from rankwise.files import whole_folder, write_json
from rankwise.models.embedding import TextEncoder
from rankwise.nearest import unknown
from rankwise.prompting.depth import Encoder, unit_rows
from rankwise.prompting.examples import Example, TooLong, as_example, as_row, few_shot, read_examples
from rankwise.prompting.language_model import LanguageModel, Prompt, Sampling
from rankwise.prompting.names import STYLES
from rankwise.prompting.selectors import KNNSelector, Selector, bm25_index, bm25_scores, embedded
from rankwise.reading import check_regular, read_json
from rankwise.spectral import each, symmetric_eigh

__all__ = ["DQLoReSelector", "lore", "scored_pairs", "train_retriever"]

METHODS = ("pca", "kernel-pca", "none")
SIMILARITIES = ("inner", "cosine")
_SETTINGS = {
    **dict.fromkeys(("k_examples", "candidates", "rank", "initial", "max_new_tokens"), int),
    **dict.fromkeys(("order", "method", "similarity", "style"), str),
}
_ENDS = ("\nQuestion:",)
_TOGETHER = 64  # queries whose matrices stay in the cache


class DQLoReSelector(Selector):
    """Examples by DQ-LoRe.

    Parameters
    ----------
    language_model : LanguageModel, optional
        Writes the chain of thought. Without one the second query is the question alone.
    encoder : callable, optional
        Texts to ``(n, d)``, e.g. what `train_retriever` returns; the bundled MiniLM by default.
    k_examples : int
        How many examples are selected.
    candidates : int
        M, nearest examples that are re-ranked.
    rank : int, optional
        k, directions kept, below M; by default a quarter of M, as in the paper's 16 of 64.
    method : {"pca", "kernel-pca", "none"}
        LoRe's kernel: linear, or Gaussian with the candidates' median distance as its width; ``none`` keeps the
        second query's order.
    similarity : {"inner", "cosine"}
        How the projections are compared: by inner product or by angle.
    initial : int
        How many examples the first query shows.
    first : Selector, optional
        Who chooses those, e.g. `BM25Selector`; a copy is fitted on the same pool, with ``initial`` examples. By default
        `KNNSelector` with this encoder.
    order : {"ascending", "descending"}
        Most similar last, next to the question; or first.
    max_new_tokens, style
        Length and form of what the model writes in the first query, see `few_shot`.

    Attributes
    ----------
    embeddings_ : ndarray
        ``(n, d)`` unit rows, of question and solution.
    rank_ : int
        k as used; 0 where one candidate is left and there is nothing to rank.
    fallbacks_ : int
        Questions so far for which the model wrote nothing, or could not be asked since they are too long, so that they
        were looked up alone.

    Examples
    --------
    >>> import numpy as np
    >>> from rankwise.prompting import DQLoReSelector
    >>> def encoder(texts):  # letters; by default MiniLM, or what train_retriever returns
    ...     return np.array([[1.0 + text.count(letter) for letter in "abcdeghr"] for text in texts])
    >>> questions = ("a cab", "a bad cab", "her edge", "he heard", "a grab", "a hedge")
    >>> pool = [{"question": question, "answer": "…"} for question in questions]
    >>> selector = DQLoReSelector(None, encoder, k_examples=2, candidates=4, rank=2).fit(pool)
    >>> len(selector.select("a red cab")), selector.rank_
    (2, 2)
    """

    _known: NDArray | None = None  # embeddings of a saved pool

    def __init__(
        self,
        language_model: LanguageModel | None = None,
        encoder: Encoder | None = None,
        k_examples: int = 8,
        *,
        candidates: int = 64,
        rank: int | None = None,
        method: str = "pca",
        similarity: str = "inner",
        initial: int = 8,
        first: Selector | None = None,
        order: str = "ascending",
        max_new_tokens: int = 64,
        style: str = "text",
    ) -> None:
        self.language_model, self.encoder, self.k_examples = language_model, encoder, k_examples
        self.candidates, self.rank, self.method, self.similarity = candidates, rank, method, similarity
        self.initial, self.first, self.order = initial, first, order
        self.max_new_tokens, self.style = max_new_tokens, style

    def save(self, folder: str | Path) -> None:
        """Pool, embeddings (float16), settings, and the encoder if it is a `TextEncoder`."""
        with whole_folder(Path(folder), made_by="DQLoReSelector.save") as draft:
            rows = [json.dumps(as_row(e), ensure_ascii=False) for e in self.pool_]
            (draft / "pool.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
            np.save(draft / "embeddings.npy", self.embeddings_.astype(np.float16))
            first = "" if self.first is None else type(self.first).__name__
            write_json(draft / "settings.json", {k: getattr(self, k) for k in _SETTINGS} | {"first": first})
            if isinstance(self.encoder, TextEncoder):
                self.encoder.save(draft / "encoder")

    @classmethod
    def load(
        cls, folder: str | Path, language_model: LanguageModel | None = None, encoder: Encoder | None = None,
        *, first: Selector | None = None,
    ) -> DQLoReSelector:  # fmt: skip
        """A saved selector; nothing is embedded again.

        The model and who chooses for its first query are not saved: where one chose, ``first`` is needed with a model.
        """
        folder = Path(folder)
        if encoder is None and (folder / "encoder").is_dir():
            encoder = TextEncoder(str(folder / "encoder"))
        settings = read_json(folder / "settings.json")
        chose = settings.pop("first", "")
        if chose and first is None and language_model is not None:
            raise ValueError(f"a {chose} chose the examples of {folder}'s first query: give it as first=")
        if set(settings) != set(_SETTINGS):
            raise ValueError(f"{folder / 'settings.json'} holds {', '.join(settings)}: not a saved selector's")
        for name, kind in _SETTINGS.items():
            if type(settings[name]) is not kind and not (name == "rank" and settings[name] is None):
                raise ValueError(f"{folder / 'settings.json'}: {name}={settings[name]!r:.80} is no {kind.__name__}")
        selector = cls(language_model, encoder, first=first, **settings)
        selector._known = _embeddings(folder / "embeddings.npy")
        selector.fit(read_examples(folder / "pool.jsonl"))
        selector._known = None
        return selector

    def _prepare(self) -> None:
        self._check()
        X = embedded([_whole(e) for e in self.pool_], self.encoder) if self._known is None else self._known
        if len(X) != len(self.pool_):
            raise ValueError(f"{len(X)} embeddings for a pool of {len(self.pool_)}")
        self.embeddings_ = unit_rows(X, "the pool")
        self._index = NearestNeighbors(metric="cosine", algorithm="brute").fit(self.embeddings_[self._distinct])
        self._first = None
        if self.language_model is not None:
            self._first = KNNSelector(encoder=self.encoder) if self.first is None else copy(self.first)
            self._first.k_examples = min(self.initial, len(self.pool_))
            self._first.fit(self.pool_)
        self.fallbacks_ = 0

    def _check(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.similarity not in SIMILARITIES:
            raise unknown("similarity", self.similarity, SIMILARITIES)
        if self.style not in STYLES:
            raise unknown("style", self.style, STYLES)
        if self.candidates < 1 or self.initial < 1:
            raise ValueError(f"candidates={self.candidates} and initial={self.initial}; at least 1 is needed")
        self._size = min(self.candidates, len(self._distinct))
        if self.candidates > self._size:
            warnings.warn(f"candidates={self.candidates} of a pool of {self._size} questions: all of it", stacklevel=4)
        if self.method != "none" and self.rank is not None and not 1 <= self.rank < self._size:
            raise ValueError(f"rank={self.rank} with {self._size} candidates: 1 to {self._size - 1} reduces anything")
        self.rank_ = min(max(1, self._size // 4), self._size - 1) if self.rank is None else self.rank

    def _rank(self, queries: list[str]) -> Iterable[Iterable[int]]:
        if not queries:
            return []
        written = self.chains_of_thought(queries)
        self.fallbacks_ += sum(not w for w in written)
        texts = [f"{q} {w}".strip() for q, w in zip(queries, written, strict=True)]
        Q = unit_rows(embedded(texts, self.encoder), "the queries")
        reach = min(self._size + 1, len(self._distinct))
        near = self._distinct[self._index.kneighbors(Q, reach, return_distance=False)]
        own = near == np.array([self._own(q) for q in queries])[:, None]  # comes last, where there are not enough
        near = np.take_along_axis(near, np.argsort(own, axis=1, kind="stable"), 1)[:, : self._size]
        if self.method == "none" or not self.rank_:
            return near
        near.sort(axis=1)  # ties by position
        scores = self._scores(torch.from_numpy(Q), torch.from_numpy(self.embeddings_[near])).numpy()
        return np.take_along_axis(near, np.argsort(-scores, axis=1, kind="stable"), 1)

    def _scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        return lore(query, candidates, self.rank_, method=self.method, similarity=self.similarity)

    def chains_of_thought(self, queries: Sequence[str]) -> list[str]:
        """The first query: what the model writes for each question; empty without a model, and for too long ones."""
        written = [""] * len(queries)
        model = self.language_model
        if self._first is None or model is None:
            return written
        prompts: dict[int, Prompt] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of too few examples: said once, of those selected in the end
            first = self._first.select_batch(queries)
        for i, (query, shots) in enumerate(zip(queries, first, strict=True)):
            with suppress(TooLong):
                built = few_shot(query, shots, model=model, max_new_tokens=self.max_new_tokens, style=self.style)
                prompts[i] = built.prompt
        sampling = Sampling(max_new_tokens=self.max_new_tokens, stop=_ENDS)
        for i, found in zip(prompts, model.generate(list(prompts.values()), sampling), strict=True):
            written[i] = found.text.strip()
        return written


def _embeddings(path: Path) -> NDArray:
    """What `numpy.save` wrote; whatever reading a broken file ends in names it."""
    check_regular(path)
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # as of the tokenizer that reads its header
        raise ValueError(f"{path} cannot be read as an array: {error}") from error


@torch.no_grad()
def lore(
    query: Tensor,
    candidates: Tensor,
    rank: int,
    *,
    method: str = "pca",
    similarity: str = "inner",
    centre: bool = True,
) -> Tensor:
    """LoRe's scores of the candidates; of many queries, parts at the same time. Gradients are not recorded.

    Parameters
    ----------
    query : Tensor
        The embedding of the query, ``(…, d)``.
    candidates : Tensor
        The embeddings of its candidates, ``(…, M, d)``; any floating dtype, any device.
    rank : int
        How many directions k are kept, 1 to M + 1.
    method : {"pca", "kernel-pca"}
        The kernel: linear, or Gaussian with the median distance as its width.
    similarity : {"inner", "cosine"}
        How the projections are compared: by inner product or by angle.
    centre : bool
        Whether what all rows share is taken out first. Default True.

    Returns
    -------
    Tensor
        ``(…, M)``, float64.

    Raises
    ------
    ValueError
        Rank out of range, NaN, an unknown name.

    Examples
    --------
    >>> import torch
    >>> from rankwise.prompting import lore
    >>> candidates = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.5, 0.5, 1.0]])
    >>> lore(torch.tensor([0.9, 0.1, 1.0]), candidates, rank=1).argsort(descending=True).tolist()
    [0, 2, 1]
    """
    if query.ndim == 2 and len(query) > _TOGETHER:

        def part(pair: tuple[Tensor, Tensor]) -> Tensor:
            return lore(*pair, rank, method=method, similarity=similarity, centre=centre)

        return torch.cat(list(each(part, zip(query.split(_TOGETHER), candidates.split(_TOGETHER), strict=True))))
    X = torch.cat([candidates, query.unsqueeze(-2)], -2).double()
    if not 1 <= rank <= X.shape[-2]:
        raise ValueError(f"rank={rank} is outside 1..{X.shape[-2]} for {X.shape[-2] - 1} candidates and the query")
    if not torch.isfinite(X).all():
        raise ValueError("embeddings have NaN or Inf")
    if similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)
    if method == "pca":
        G = X @ X.mT
    elif method == "kernel-pca":
        distance = torch.cdist(X, X)
        rows, columns = torch.triu_indices(X.shape[-2], X.shape[-2], 1)
        upper = distance[..., rows, columns]
        width = upper.median(-1).values.clamp(min=1e-150)[..., None, None]  # its square is no zero
        G = torch.exp(-(distance**2) / (2 * width**2))
    else:
        raise unknown("method", method, METHODS[:2])
    if centre:
        G = G - G.mean(-1, keepdim=True) - G.mean(-2, keepdim=True) + G.mean((-2, -1), keepdim=True)
    values, vectors = symmetric_eigh(G)
    Z = vectors[..., -rank:] * values[..., None, -rank:].clamp(min=0).sqrt()
    if similarity == "cosine":
        Z = torch.nn.functional.normalize(Z, dim=-1)
    return (Z[..., :-1, :] @ Z[..., -1, :, None])[..., 0]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """For each example that has them: its positives and hard negatives, ``(n, top)`` positions in the pool.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Score, scored_pairs
    >>> def score(prompts, given):  # of a model that likes short texts; TransformersModel and ServerModel are real ones
    ...     return [[Score(logprobs=(-float(len(prompt)),))] for prompt in prompts]
    >>> pool = [{"question": "q" * i, "answer": "a thing"} for i in (1, 2, 3, 4)]
    >>> pairs = scored_pairs(pool, SimpleNamespace(name="toy", context=None, score=score), candidates=3, top=1)
    >>> pairs.positives.flatten().tolist(), pairs.negatives.flatten().tolist()
    ([1, 0, 0, 0], [3, 3, 3, 2])
    """

    queries: NDArray[np.intp]
    positives: NDArray[np.intp]
    negatives: NDArray[np.intp]


def scored_pairs(
    pool: Sequence[Example],
    scorer: LanguageModel,
    *,
    candidates: int = 50,
    top: int = 5,
    queries: Sequence[int] | None = None,
) -> Pairs:
    """What the language model finds helpful: of each example's BM25 candidates the best and the worst.

    Parameters
    ----------
    pool : sequence of Example
        The examples, all with a solution.
    scorer : LanguageModel
        Scores ``c_i`` after example j and question i; wrapped in `Recorded` this resumes.
    candidates : int
        How many candidates are scored for a query: those that BM25 finds by its solution, never itself.
    top : int
        How many positives are kept, and as many negatives.
    queries : sequence of int, optional
        Positions for which to look; all by default.

    Raises
    ------
    ValueError
        Fewer than ``2 top`` candidates, or a score that is not a number.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from rankwise.prompting import Score, scored_pairs
    >>> def score(prompts, given):  # of a model that likes short texts; TransformersModel and ServerModel are real ones
    ...     return [[Score(logprobs=(-float(len(prompt)),))] for prompt in prompts]
    >>> pool = [{"question": "q" * i, "answer": "a thing"} for i in (1, 2, 3, 4)]
    >>> model = SimpleNamespace(name="toy", context=None, score=score)
    >>> pairs = scored_pairs(pool, model, candidates=3, top=1, queries=[2])
    >>> pairs.queries.tolist(), pairs.positives.tolist()
    ([2], [[0]])
    """
    pool = [as_example(e) for e in pool]
    candidates = min(candidates, len(pool) - 1)
    if candidates < 2 * top:
        raise ValueError(f"{candidates} candidates of a pool of {len(pool)} for {top} positives and {top} negatives")
    index, rows = bm25_index([e.solution for e in pool]), list(range(len(pool)) if queries is None else queries)
    prompts, near, strange = [], np.zeros((len(rows), candidates), np.intp), 0
    for k, i in enumerate(rows):
        scores = bm25_scores(index, pool[i].solution).copy()
        strange += not np.delete(scores, i).any()
        scores[i] = -np.inf  # a query never retrieves itself
        near[k] = np.argsort(-scores, kind="stable")[:candidates]
        prompts += [few_shot(pool[i].question, [pool[j]], style="text").prompt for j in near[k]]
    if strange:
        warnings.warn(
            f"{strange} of {len(rows)} solutions share no word with another one: their candidates are the pool's first",
            stacklevel=2,
        )
    continuations = [[f" {pool[i].solution}"] for i in rows for _ in range(candidates)]
    found = scorer.score(prompts, continuations)
    logp = np.array([s[0].mean for s in found]).reshape(near.shape)
    if np.isnan(logp).any():
        raise ValueError(f"{scorer.name} gave a log-probability that is not a number")
    order = np.take_along_axis(near, np.argsort(-logp, axis=1, kind="stable"), 1)
    return Pairs(queries=np.array(rows, np.intp), positives=order[:, :top], negatives=order[:, -top:])


def train_retriever(
    pool: Sequence[Example],
    pairs: Pairs,
    *,
    encoder: str = "minilm",
    epochs: int = 5,
    batch_size: int = 16,
    learning_rate: float = 2e-5,
    warmup: float = 0.1,
    scale: float = 20.0,
    validation: float = 0.1,
    patience: int = 2,
    max_length: int = 128,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TextEncoder:
    """An encoder for which helpful examples lie near.

    Parameters
    ----------
    pool : sequence of Example
        The examples that the pairs are of.
    pairs : Pairs
        Positives and negatives of each, see `scored_pairs`.
    encoder : str
        What training starts from, see `TextEncoder`.
    epochs, patience : int
        How many epochs are trained at most; training stops when the validation loss has not fallen for ``patience`` of
        them, and the best weights are kept.
    batch_size : int
        Queries a step, each with one positive and one hard negative, all of which all are compared with.
    learning_rate, warmup : float
        AdamW's, linear from 0 over the ``warmup`` share of steps, then down to 0.
    scale : float
        What inner products of unit vectors are multiplied with in the loss; the released code has 1.
    validation : float
        The share of the queries that is held out.
    max_length : int
        Tokens of a text that are read at most.
    on_step : callable, optional
        Called with ``(step, steps, loss)`` after each step.

    Raises
    ------
    ValueError
        Fewer queries than one batch.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from transformers import BertConfig, BertModel, BertTokenizer
    >>> from rankwise.prompting import Example, train_retriever
    >>> from rankwise.prompting.dq_lore import Pairs
    >>> words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "fine"])}
    >>> config = BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> pool = [Example(question=text, answer="good") for text in ("a film", "fine film", "a fine film", "film")]
    >>> positives, negatives = np.array([[3], [2], [1], [0]]), np.array([[1], [3], [0], [2]])
    >>> pairs = Pairs(queries=np.arange(4), positives=positives, negatives=negatives)
    >>> with tempfile.TemporaryDirectory() as folder:  # scored_pairs finds pairs, and "minilm" is a real encoder
    ...     BertModel(config).save_pretrained(folder)
    ...     _ = BertTokenizer(vocab=words).save_pretrained(folder)
    ...     encoder = train_retriever(pool, pairs, encoder=folder, epochs=1, batch_size=2, validation=0.0)
    >>> encoder(["a fine film"]).shape  # for KNNSelector, DQLoReSelector and TextDepth
    (1, 16)
    """
    from transformers import get_linear_schedule_with_warmup

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pairs.queries))
    held, rows = np.split(order, [round(validation * len(order))])
    if len(rows) < batch_size:
        raise ValueError(f"{len(rows)} queries to train on are fewer than batch_size={batch_size}")
    torch.manual_seed(seed)
    model = TextEncoder(encoder, max_length=max_length)
    task = _Contrast(model, [_whole(e) for e in pool], pairs, scale)
    each = len(rows) // batch_size
    steps, optimizer = epochs * each, torch.optim.AdamW(model.model.parameters(), lr=learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)
    best, since, kept = task.held_out(held, batch_size, seed), 0, _copied(model)
    for epoch in range(epochs):
        rows = rng.permutation(rows)
        for k in range(each):
            model.model.train()
            value = task.loss(rows[k * batch_size : (k + 1) * batch_size], rng)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if on_step:
                on_step(epoch * each + k + 1, steps, float(value.detach()))
        now = task.held_out(held, batch_size, seed)
        if not len(held) or now < best:
            best, since, kept = now, 0, _copied(model)
        elif (since := since + 1) >= patience:
            break
    model.model.load_state_dict(kept)
    model.model.eval()
    return model


class _Contrast(NamedTuple):
    """What is trained: an encoder on the pairs of a pool's texts."""

    model: TextEncoder
    texts: list[str]
    pairs: Pairs
    scale: float

    def loss(self, batch: NDArray, draw: np.random.Generator) -> Tensor:
        """Of these queries, each with a positive and a negative that are drawn."""
        pairs = self.pairs
        picks = draw.integers(pairs.positives.shape[1], size=(2, len(batch)))
        chosen = [pairs.queries[batch], pairs.positives[batch, picks[0]], pairs.negatives[batch, picks[1]]]
        vectors = self.model.vectors([self.texts[i] for part in chosen for i in part])
        return contrastive_loss(*vectors.split(len(batch)), scale=self.scale)

    @torch.no_grad()
    def held_out(self, rows: NDArray, batch_size: int, seed: int) -> float:
        """The mean loss over these queries, by the same draws each time; NaN where there are none."""
        self.model.model.eval()
        draw, parts = np.random.default_rng(seed), np.array_split(rows, max(1, len(rows) // batch_size))
        return float(np.mean([float(self.loss(p, draw)) for p in parts])) if len(rows) else float("nan")


def contrastive_loss(query: Tensor, positive: Tensor, negative: Tensor, *, scale: float = 1.0) -> Tensor:
    """``-mean_i log exp(s q_i·p_i) / Σ_j [exp(s q_i·p_j) + exp(s q_i·n_j)]`` of ``(batch, d)`` each.

    Examples
    --------
    >>> import torch
    >>> from rankwise.prompting.dq_lore import contrastive_loss
    >>> round(float(contrastive_loss(torch.eye(2), torch.eye(2), -torch.eye(2), scale=100.0)), 3)
    0.0
    """
    logits = scale * query @ torch.cat([positive, negative]).mT
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(query), device=query.device))


def _copied(model: TextEncoder) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.model.state_dict().items()}


def _whole(example: Example) -> str:
    return f"{example.question} {example.solution}"
