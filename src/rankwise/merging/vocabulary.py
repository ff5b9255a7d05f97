"""Models whose vocabularies differ: one tokenizer for the result, and where each of its tokens lies in each model.

A row that a model lacks is taken from the base, so that the model has learned nothing there; where the base lacks it
too, it is the mean of the models that have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankwise.merging.sources import Source
from rankwise.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vocabulary:
    """The result's tokens.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
    rows : list of Tensor
        A model: for each token its row there, or -1; ``(size,)``, int64.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: list[Tensor]

    @property
    def size(self) -> int:
        """Rows of the embedding."""
        return len(self.rows[0])


def vocabulary(sources: Sequence[Source], choice: str, base: Source | None) -> Vocabulary:
    """One vocabulary for all.

    Parameters
    ----------
    sources : sequence of Source
    choice : str
        ``base``, ``union`` (the base's tokens first, then what others add, in their order), or a model's label.
    base : Source, optional
        The base; the first source where there is none.

    Raises
    ------
    ValueError
        A model without a tokenizer, or a choice that is none of the models.
    """
    first = base or sources[0]
    tokenizers = {s.label: _tokenizer(s) for s in sources}
    if choice in ("base", "union"):
        chosen = _tokenizer(first)
    elif choice in tokenizers:
        chosen = tokenizers[choice]
    else:
        raise ValueError(f"tokenizer_source '{choice}' is neither base, union, nor one of {', '.join(tokenizers)}")
    if choice == "union":
        for other in tokenizers.values():
            known, added = chosen.get_vocab(), other.added_tokens_decoder
            absent = sorted((i, t) for t, i in other.get_vocab().items() if t not in known)
            chosen.add_tokens([added.get(i, t) for i, t in absent])
    names = chosen.convert_ids_to_tokens(list(range(len(chosen))))
    rows = []
    for s in sources:
        ids = tokenizers[s.label].get_vocab()
        rows.append(torch.tensor([ids.get(n, -1) for n in names]))
    return Vocabulary(chosen, rows)


def aligned(tensors: Sequence[Tensor], rows: Sequence[Tensor], base: int | None) -> list[Tensor]:
    """Embeddings of different vocabularies, ``(size, d)`` each, in the dtype they have.

    Parameters
    ----------
    tensors : sequence of Tensor
        ``(rows, d)`` each.
    rows : sequence of Tensor
        From `Vocabulary`.
    base : int, optional
        Which of them is the base.
    """
    out, have = [], []
    for x, at in zip(tensors, rows, strict=True):
        there = (at >= 0) & (at < len(x))
        out.append(x[torch.where(there, at, 0)] * there[:, None].to(x.dtype))
        have.append(there)
    count = torch.stack(have).sum(0)
    mean = sum(x.float() for x in out) / count.clamp(min=1)[:, None]
    if base is not None:
        mean = torch.where(have[base][:, None], out[base].float(), mean)
    return [torch.where(there[:, None], x, mean.to(x.dtype)) for x, there in zip(out, have, strict=True)]


def differ(sources: Sequence[Source]) -> bool:
    """Whether any two models' tokenizers give tokens different numbers; those without a tokenizer are not asked."""
    found = [_tokenizer(s).get_vocab() for s in sources if s.folder and (s.folder / "tokenizer_config.json").exists()]
    return any(v != found[0] for v in found[1:])


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    if source.folder is None or not any(source.folder.glob("tokenizer*")):
        raise ValueError(f"{source.label} has no tokenizer; leave tokenizer_source out")
    return load_tokenizer(str(source.folder))
