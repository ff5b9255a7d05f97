"""Models whose vocabularies differ: one tokenizer for the result, and where each of its tokens lies in each model.

A row that a model lacks is taken from the base, so that the model has learned nothing there; where the base lacks it
too, it is the mean of the models that have it. Single tokens may be given another row (``tokens``), in the models that
lack them or, with ``force``, in all. What else counts tokens by number follows: settings of the configuration and of
generation (``eos_token_id``, ``suppress_tokens``), as the token moves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankwise.files import content_of, fingerprint
from rankwise.merging.engine.config import TokenConfig, TokenizerConfig
from rankwise.merging.engine.sources import Source
from rankwise.models.loading import pretrained
from rankwise.models.names import check_inside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUMBERS = re.compile(r"(_token_ids?|_token_index|suppress_tokens|_to_id)$")


@dataclass(frozen=True, kw_only=True)
class Given:
    """A token whose row is given.

    Attributes
    ----------
    model : int or None
        Which source has the row; None: zeros.
    row : int
        The number of the row in that source's embedding.
    force : bool
        In all models, not only in those that lack the token.

    Examples
    --------
    >>> from rankwise.merging.engine.vocabulary import Given
    >>> Given(model=None, force=True).model is None  # zeros, in all models: `tokens: {"<x>": {source: {kind: zero}}}`
    True
    """

    model: int | None
    row: int = 0
    force: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The result's tokens.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that is written beside the result.
    rows : list of Tensor
        A model: for each token its row there, or -1; ``(tokens,)``, int64.
    given : dict of Given
        Tokens whose rows are given, by their numbers in the result.
    size : int
        Rows of the result's embedding; those behind the last token get the mean of all others.
    moved : dict
        A token's number in the lead's tokenizer to its number in the result.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging.engine.vocabulary import Vocabulary
    >>> rows = [torch.tensor([0, 1, -1]), torch.tensor([0, -1, 1])]  # two models of two tokens, one in common
    >>> tokens = Vocabulary(None, rows, size=3, moved={0: 0, 1: 2})
    >>> tokens.renumbered({"eos_token_id": 1, "vocab_size": 1})
    {'eos_token_id': 2, 'vocab_size': 1}
    """

    tokenizer: PreTrainedTokenizerBase
    rows: list[Tensor]
    given: Mapping[int, Given] = field(default_factory=dict)
    size: int = 0
    moved: Mapping[int, int] = field(default_factory=dict)

    def renumbered(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with tokens' numbers as they are in the result; a token that it lacks has none."""
        out: dict[str, Any] = {}
        for key, value in settings.items():
            if key == "forced_decoder_ids" and isinstance(value, list):
                out[key] = [[place, self._number(i)] for place, i in value]
            elif _NUMBERS.search(key):
                out[key] = self._number(value)
            else:
                out[key] = self.renumbered(value) if isinstance(value, dict) else value
        return out

    def _number(self, value: Any) -> Any:
        if isinstance(value, list):
            return [i for i in map(self._number, value) if i is not None]
        if isinstance(value, dict):
            return {k: self._number(v) for k, v in value.items()}
        return self.moved.get(value) if type(value) is int and value >= 0 else value


def joined_vocabulary(sources: Sequence[Source], asked: TokenizerConfig, base: Source | None) -> Vocabulary:
    """One vocabulary for all.

    Parameters
    ----------
    sources : sequence of Source
        The models, each with a tokenizer.
    asked : TokenizerConfig
        Its source is ``base``, ``union`` (the base's tokens first, then what others add, in their order), or a model's
        label.
    base : Source, optional
        The base; the first source where there is none.

    Raises
    ------
    ValueError
        A model without a tokenizer, a choice that is none of the models, a token that its source does not have.
    """
    first = base or sources[0]
    tokenizers = {s.label: tokenizer_of(s) for s in sources}
    if asked.source in ("base", "union"):
        chosen = tokenizer_of(first)
    elif asked.source in tokenizers:
        chosen = tokenizer_of(next(s for s in sources if s.label == asked.source))
    else:
        raise ValueError(
            f"tokenizer source '{asked.source}' is neither base, union, nor one of {', '.join(tokenizers)}"
        )
    if asked.source == "union":
        for other in tokenizers.values():
            known, added = chosen.get_vocab(), other.added_tokens_decoder
            absent = sorted((i, t) for t, i in other.get_vocab().items() if t not in known)
            chosen.add_tokens([added.get(i, t) for i, t in absent])
    chosen.add_tokens([t for t in asked.tokens if t not in chosen.get_vocab()])
    ids = {s.label: tokenizers[s.label].get_vocab() for s in sources}
    names = chosen.convert_ids_to_tokens(list(range(len(chosen))))
    number = {n: i for i, n in enumerate(names)}
    multiple = asked.pad_to_multiple_of or 1
    return Vocabulary(
        tokenizer=chosen,
        rows=[torch.tensor([ids[s.label].get(n, -1) for n in names]) for s in sources],
        given={number[t]: _given(t, c, sources, ids) for t, c in asked.tokens.items() if c.source or c.force},
        size=-(-len(names) // multiple) * multiple,
        moved={i: number[t] for t, i in ids[first.label].items() if t in number},
    )


def _given(token: str, asked: TokenConfig, sources: Sequence[Source], ids: Mapping[str, Mapping[str, int]]) -> Given:
    source = asked.source
    if source is None:
        raise ValueError(f"tokenizer: token '{token}' is forced, but has no source")
    if source.kind == "zero":
        return Given(model=None, force=asked.force)
    labels = [s.label for s in sources]
    if source.model not in labels:
        raise ValueError(f"tokenizer: token '{token}' is to come from {source.model}, which is not merged")
    held = ids[str(source.model)]
    row = source.token_id if source.token_id is not None else held.get(source.token or token, -1)
    rows = sources[labels.index(str(source.model))].rows
    if not 0 <= row < (rows or len(held)):
        raise ValueError(
            f"tokenizer: {source.model} has no token {row if source.token_id is not None else source.token or token!r}"
        )
    return Given(model=labels.index(str(source.model)), row=row, force=asked.force)


def aligned(
    tensors: Sequence[Tensor],
    rows: Sequence[Tensor],
    base: int | None,
    *,
    given: Mapping[int, tuple[Tensor | None, bool]] | None = None,
    size: int = 0,
) -> list[Tensor]:
    """Embeddings of different vocabularies, ``(size, …)`` each, in the dtype they have.

    Parameters
    ----------
    tensors : sequence of Tensor
        The models' embeddings, ``(rows, …)`` each.
    rows : sequence of Tensor
        For each model the rows of the result's tokens there, as `Vocabulary` has them.
    base : int, optional
        Which of the tensors is the base's.
    given : mapping, optional
        For single tokens a row (None: zeros) instead of the base's or the mean, and whether those that have the token
        get it too.
    size : int
        Rows of the result; those behind the last token are the mean of the others.

    Examples
    --------
    >>> import torch
    >>> from rankwise.merging.engine.vocabulary import aligned
    >>> rows = [torch.tensor([0, 1, -1]), torch.tensor([0, -1, 1])]  # two models of two tokens, one in common
    >>> one, other = aligned([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])], rows, base=None)
    >>> one.flatten().tolist(), other.flatten().tolist()  # a row that is lacking is that of who has it
    ([1.0, 2.0, 4.0], [3.0, 2.0, 4.0])
    """
    out, have = [], []
    for x, at in zip(tensors, rows, strict=True):
        there = (at >= 0) & (at < len(x))
        out.append(x[torch.where(there, at, 0)] * _over(there, x).to(x.dtype))
        have.append(there)
    count = torch.stack(have).sum(0)
    mean = sum(x.float() for x in out) / _over(count.clamp(min=1), out[0])
    if base is not None:
        mean = torch.where(_over(have[base], mean), out[base].float(), mean)
    for token, (row, force) in (given or {}).items():
        mean[token] = 0 if row is None else row.float()
        for there in have if force else ():
            there[token] = False
    filled = [torch.where(_over(there, x), x, mean.to(x.dtype)) for x, there in zip(out, have, strict=True)]
    more = size - len(mean)
    if more <= 0:
        return filled
    return [torch.cat([x, x.float().mean(0, keepdim=True).to(x.dtype).expand(more, *x.shape[1:])]) for x in filled]


def _over(rows: Tensor, x: Tensor) -> Tensor:
    """A value a row, over the rest of x's axes."""
    return rows.reshape(-1, *[1] * (x.ndim - 1))


def compared(sources: Sequence[Source]) -> list[str]:
    """A note where any two models' tokenizers give tokens different numbers; those without one are not asked."""
    having = [s for s in sources if s.folder and (s.folder / "tokenizer_config.json").exists()]
    same_files = {fingerprint({p.name: content_of(p) for p in _files(s)}) for s in having}
    if len(same_files) < 2:
        return []
    try:
        vocabularies = [tokenizer_of(s).get_vocab() for s in having]
    except ValueError as error:
        return [f"the tokenizers are not compared: {error}"]
    if all(v == vocabularies[0] for v in vocabularies):
        return []
    return ["the tokenizers differ: without tokenizer_source, rows of different tokens are merged"]


def _files(source: Source) -> list[Path]:
    folder = Path(str(source.folder))
    return [
        p for pattern in ("tokenizer*", "vocab*", "merges*", "added_tokens*", "*.model") for p in folder.glob(pattern)
    ]


def tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """A source's tokenizer, of its own: it may be added to.

    Raises
    ------
    ValueError
        It has none, or one that `transformers` does not read.
    """
    if source.folder is None or not any(source.folder.glob("tokenizer*")):
        raise ValueError(f"{source.label} has no tokenizer")
    for path in _files(source):
        check_inside(path, source.folder)
    from transformers import AutoTokenizer

    try:
        return pretrained(AutoTokenizer, source.folder)
    except Exception as error:  # whatever a tokenizer makes of a file that does not fit it
        raise ValueError(f"the tokenizer of {source.label} cannot be loaded: {str(error)[:200]}") from error
