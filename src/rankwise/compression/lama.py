"""LAMA: attention pooling whose heads share one low-rank factorisation, and a small text classifier built on it.

Token states ``H: (n, d)`` are read by m heads, each of rank k, with one query c for the whole text:

    F_t = Σ_k (Pᵀ c) ∘ (Qᵀ h_t)  ∈ R^m,      P, Q ∈ R^{d × mk},      that is f_i(c, h) = cᵀ W_i h,  W_i = P_i Q_iᵀ
    A = softmax over t of F  (n, m),          S = Aᵀ H  (m, d)  →  dropout  →  linear  →  classes

The query is a learned vector (``context="global"``) or the mean of H (``"mean"``). Cost is linear in n: no token
attends to another. ``2·d·m·k`` numbers (and d for a learned query), against ``4·d²`` of a Transformer's attention.

Source: Mehta, Rangwala & Ramakrishnan, "Low Rank Factorization for Compact Multi-Head Self-Attention", arXiv
1912.00835.

What people get wrong: packing a GRU's input for speed and then masking by the unpacked positions. Here the packed
output is padded back to the mask's length, so that padding changes nothing.
"""

# (attributes of transformers' classes are only known at run time)

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = ["LamaClassifier", "LamaConfig", "LowRankAttentionPooling"]

Context = Literal["global", "mean"]
CONTEXTS = ("global", "mean")


class LowRankAttentionPooling(nn.Module):
    """Several attention distributions over a sequence, for the price of a vector pair each.

    Parameters
    ----------
    d_model : int
        The width d of the token states.
    heads : int
        The number m of attention distributions; the output has a row for each.
    rank : int
        k of each head's affinity matrix; 1 is the paper's, ``d_model`` leaves it free.
    context : {"global", "mean"}
        The query: a learned vector, or the mean of the unpadded states.
    dropout : float
        Probability with which an attention weight is dropped in training, in [0, 1).
    nonlinear : bool
        ``tanh`` on both factors (an option of low-rank bilinear pooling).
    normalize : bool
        Scale both factors to length √m over the entries of all heads, and the scores by a learned temperature.

    Raises
    ------
    ValueError
        Sizes that are not positive, a rank above ``d_model``, an unknown context, a dropout out of range.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression import LowRankAttentionPooling
    >>> pool = LowRankAttentionPooling(d_model=16, heads=4)  # after any encoder
    >>> states, padding = torch.randn(2, 7, 16), torch.zeros(2, 7, dtype=torch.bool)
    >>> pooled, weights = pool(states, padding, need_weights=True)
    >>> pooled.shape, torch.allclose(weights.sum(-1), torch.ones(2, 4))
    (torch.Size([2, 4, 16]), True)
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        *,
        rank: int = 1,
        context: Context = "global",
        dropout: float = 0.0,
        nonlinear: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if min(d_model, heads, rank) < 1:
            raise ValueError(f"{d_model=}, {heads=} and {rank=} must be at least 1")
        if rank > d_model:
            raise ValueError(f"{rank=} is above {d_model=}: a {d_model} x {d_model} matrix has no more directions")
        if context not in CONTEXTS:
            raise ValueError(f"{context=}; 'global' or 'mean' is accepted")
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} is outside [0, 1)")
        if heads * rank > 4 * d_model:
            warnings.warn(f"{heads} heads of rank {rank} on {d_model} features say the same thing often", stacklevel=2)
        self.d_model, self.heads, self.rank, self.context = d_model, heads, rank, context
        self.dropout, self.nonlinear, self.normalize = dropout, nonlinear, normalize
        self.P = nn.Parameter(torch.empty(d_model, heads * rank))
        self.Q = nn.Parameter(torch.empty(d_model, heads * rank))
        self.query = nn.Parameter(torch.empty(d_model)) if context == "global" else None
        self.scale = nn.Parameter(torch.tensor(1.0)) if normalize else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """P and Q of unit-length columns in expectation; a query whose ``Pᵀ c`` is of size one."""
        nn.init.normal_(self.P, std=1 / math.sqrt(self.d_model))
        nn.init.normal_(self.Q, std=1 / math.sqrt(self.d_model))
        if self.query is not None:
            nn.init.normal_(self.query)

    def forward(
        self, x: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pool a batch of sequences.

        Parameters
        ----------
        x : Tensor
            ``(batch, seq, d_model)``; float32, float64 or bfloat16.
        key_padding_mask : Tensor, optional
            ``(batch, seq)`` bool, True where a position is padding (as in ``nn.MultiheadAttention``).
        need_weights : bool
            Also return the attention weights ``(batch, heads, seq)``.

        Returns
        -------
        Tensor
            ``(batch, heads, d_model)``.

        Raises
        ------
        ValueError
            An empty sequence, a mask of another shape or dtype, or a text that is all padding.
        """
        _check(x, key_padding_mask, self.d_model)
        scores = self.affinities(x, key_padding_mask)
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask[:, None], float("-inf"))
        weights = scores.softmax(-1)
        pooled = F.dropout(weights, self.dropout, self.training) @ x
        return (pooled, weights) if need_weights else pooled

    def affinities(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """``F``: the scores before the softmax, ``(batch, heads, seq)``."""
        if self.query is not None:
            c = self.query.expand(len(x), -1)
        else:
            c = masked_mean(x, key_padding_mask)
        left = self._factor(c @ self.P)  # (batch, heads·rank)
        if not (self.nonlinear or self.normalize):
            # diag(Pᵀc) folded into Q, and k summed away, before the long side is touched: (batch, heads, d)
            keys = (left[:, None] * self.Q).unflatten(-1, (self.heads, self.rank)).sum(-1).mT
            return keys @ x.mT
        right = self._factor(x @ self.Q)
        scores = (left[:, None] * right).unflatten(-1, (self.heads, self.rank)).sum(-1)
        scores = scores if self.scale is None else self.scale * scores
        return scores.mT

    def _factor(self, y: Tensor) -> Tensor:
        y = y.tanh() if self.nonlinear else y
        return F.normalize(y, dim=-1) * math.sqrt(self.heads) if self.normalize else y

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """For inference with a learned query: one linear map ``(d_model → heads)`` that gives the same scores.

        Raises
        ------
        ValueError
            The query depends on the text, or the factors are not linear.
        """
        if self.query is None or self.nonlinear or self.normalize:
            raise ValueError("only context='global' without nonlinear and normalize folds into one matrix")
        folded = (self.Q * (self.query @ self.P)).unflatten(-1, (self.heads, self.rank)).sum(-1)
        fused = nn.Linear(self.d_model, self.heads, bias=False, device=folded.device, dtype=folded.dtype)
        fused.weight.copy_(folded.mT)
        return fused

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.d_model}, heads={self.heads}, rank={self.rank}, context={self.context!r}"


def masked_mean(x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Mean of the unpadded states, ``(batch, d)``."""
    if key_padding_mask is None:
        return x.mean(1)
    keep = (~key_padding_mask).to(x.dtype)
    return (keep[:, None] @ x).squeeze(1) / keep.sum(1, keepdim=True)


def redundancy(weights: Tensor) -> Tensor:
    """``‖A Aᵀ - I‖_F²`` of weights ``(batch, heads, seq)``, mean over the batch: large where heads are alike.

    Source: Lin et al., 2017.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.lama import redundancy
    >>> float(redundancy(torch.eye(2)[None])), float(redundancy(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])))
    (0.0, 2.0)
    """
    eye = torch.eye(weights.shape[1], device=weights.device, dtype=weights.dtype)
    return (weights @ weights.mT - eye).square().sum((-2, -1)).mean()


def head_distance(weights: Tensor) -> Tensor:
    """Mean pairwise Jensen-Shannon distance of the heads' distributions ``(batch, heads, seq)``: ``(batch,)``.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.lama import head_distance
    >>> head_distance(torch.eye(2)[None]).tolist()  # two heads that look at different tokens
    [1.0]
    """

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=1e-30).log2()).sum(-1)

    mixed = entropy((weights[:, :, None] + weights[:, None]) / 2)
    own = entropy(weights)
    divergence = (mixed - (own[:, :, None] + own[:, None]) / 2).clamp(min=0)
    m = weights.shape[1]
    return divergence.sqrt().sum((1, 2)) / max(m * (m - 1), 1)


class LamaConfig(PretrainedConfig):
    """Configuration of `LamaClassifier`.

    Parameters
    ----------
    vocab_size, embedding_size : int
        How many tokens there are, and the width of their embeddings.
    encoder : {"gru", "transformer", "none"}
        What turns embeddings into token states: a bidirectional GRU of ``hidden_size`` units a direction, a Transformer
        encoder layer of width ``embedding_size``, or nothing.
    hidden_size : int
        GRU units u; token states have d = 2u.
    pooling : {"lama", "mean", "max", "structured"}
        ``lama``, or a baseline: mean, maximum, structured self-attention (Lin et al., 2017, ``attention_size`` units).
    heads, rank, context, nonlinear, normalize
        Options of the attention, see `LowRankAttentionPooling`.
    train_attention : bool
        False freezes the attention's parameters at their random start (a control).
    dropout : float
        Probability of dropout on embeddings, attention output and classifier input, in [0, 1).
    redundancy_penalty : float
        The weight of `redundancy` in the loss, at least 0.
    **kwargs
        Of `transformers.PretrainedConfig`; ``num_labels`` and ``problem_type`` choose the loss as in its classifiers.

    Raises
    ------
    ValueError
        Unknown names, sizes out of range, and options of an attention that the pooling does not have.

    Examples
    --------
    >>> from rankwise.compression import LamaConfig
    >>> LamaConfig(hidden_size=64, heads=8, num_labels=3).d_model  # both directions of the GRU
    128
    """

    model_type = "lama"

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 384,
        encoder: str = "gru",
        hidden_size: int = 128,
        pooling: str = "lama",
        heads: int = 16,
        rank: int = 1,
        context: str = "global",
        nonlinear: bool = False,
        normalize: bool = False,
        attention_size: int = 128,
        train_attention: bool = True,
        dropout: float = 0.3,
        redundancy_penalty: float = 0.0,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.embedding_size, self.encoder, self.hidden_size = (
            vocab_size,
            embedding_size,
            encoder,
            hidden_size,
        )
        self.pooling, self.heads, self.rank, self.context = pooling, heads, rank, context
        self.nonlinear, self.normalize, self.attention_size = nonlinear, normalize, attention_size
        self.train_attention, self.dropout, self.redundancy_penalty = train_attention, dropout, redundancy_penalty
        super().__init__(**kwargs)
        self.pad_token_id = pad_token_id
        _check_config(self)

    @property
    def d_model(self) -> int:
        """Width of the token states."""
        return 2 * self.hidden_size if self.encoder == "gru" else self.embedding_size


def _check_config(c: LamaConfig) -> None:
    for name, seen, accepted in (
        ("encoder", c.encoder, ("gru", "transformer", "none")),
        ("pooling", c.pooling, ("lama", "mean", "max", "structured")),
        ("context", c.context, CONTEXTS),
    ):
        if seen not in accepted:
            raise ValueError(f"{name}='{seen}'; accepted: {', '.join(accepted)}")
    for name in ("vocab_size", "embedding_size", "hidden_size", "heads", "rank", "attention_size"):
        if getattr(c, name) < 1:
            raise ValueError(f"{name}={getattr(c, name)}: at least 1")
    if not 0 <= c.dropout < 1 or c.redundancy_penalty < 0:
        raise ValueError(f"dropout={c.dropout} must be in [0, 1), redundancy_penalty={c.redundancy_penalty} at least 0")
    if c.pad_token_id is not None and not 0 <= c.pad_token_id < c.vocab_size:
        raise ValueError(f"pad_token_id={c.pad_token_id} is outside the vocabulary of {c.vocab_size}")
    own = {"rank": 1, "context": "global", "nonlinear": False, "normalize": False} if c.pooling != "lama" else {}
    own |= {"train_attention": True, "redundancy_penalty": 0.0} if c.pooling in ("mean", "max") else {}
    if strange := [n for n, default in own.items() if getattr(c, n) != default]:
        raise ValueError(f"pooling='{c.pooling}' has no {', '.join(strange)}: leave that out, or pool by 'lama'")
    if c.pooling == "lama" and c.rank > c.d_model:
        raise ValueError(f"rank={c.rank} is above the {c.d_model} features of a token")


class LamaClassifier(PreTrainedModel):
    """Embeddings → encoder → attention pooling → classes, as a `transformers` model.

    ``Trainer``, ``save_pretrained``, ``AutoModelForSequenceClassification.from_pretrained`` and ``rankwise adapt`` work
    with it.

    Examples
    --------
    >>> import torch
    >>> from transformers import AutoModelForSequenceClassification
    >>> from rankwise.compression import LamaConfig
    >>> config = LamaConfig(vocab_size=50, embedding_size=8, hidden_size=8, heads=2, num_labels=3)
    >>> model = AutoModelForSequenceClassification.from_config(config)
    >>> found = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([2]))
    >>> type(model).__name__, found.logits.shape, found.attentions[0].shape
    ('LamaClassifier', torch.Size([1, 3]), torch.Size([1, 2, 3]))
    """

    config_class = LamaConfig
    base_model_prefix = "lama"

    def __init__(self, config: LamaConfig) -> None:
        super().__init__(config)
        c, d = config, config.d_model
        self.embeddings = nn.Embedding(c.vocab_size, c.embedding_size, padding_idx=c.pad_token_id)
        self.encoder: nn.Module | None = None
        if c.encoder == "gru":
            self.encoder = nn.GRU(c.embedding_size, c.hidden_size, batch_first=True, bidirectional=True)
        elif c.encoder == "transformer":
            self.encoder = nn.TransformerEncoderLayer(
                d, attention_heads(d), 2 * d, c.dropout, batch_first=True, norm_first=True
            )
        self.pool: nn.Module | None = None
        width = d
        if c.pooling == "lama":
            self.pool = LowRankAttentionPooling(
                d, c.heads, rank=c.rank, context=cast(Context, c.context), nonlinear=c.nonlinear, normalize=c.normalize
            ).requires_grad_(c.train_attention)
            width = c.heads * d
        elif c.pooling == "structured":
            self.pool = nn.Sequential(
                nn.Linear(d, c.attention_size, bias=False), nn.Tanh(), nn.Linear(c.attention_size, c.heads, bias=False)
            ).requires_grad_(c.train_attention)
            width = c.heads * d
        self.drop = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(width, int(c.num_labels or 0))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LowRankAttentionPooling):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token states ``H: (batch, seq, d)``, zero where padded."""
        x = self.drop(self.embeddings(input_ids))
        if isinstance(self.encoder, nn.GRU):
            lengths = (attention_mask != 0).sum(1).cpu()
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.encoder(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        if self.encoder is not None:
            x = self.encoder(x + positions(x), src_key_padding_mask=attention_mask == 0)
        return x * (attention_mask != 0)[..., None]

    def pooled(self, H: Tensor, padding: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the classifier reads ``(batch, width)``, and the attention weights where there are some."""
        if isinstance(self.pool, LowRankAttentionPooling):
            S, weights = self.pool(H, padding, need_weights=True)
            return S.flatten(1), weights
        if self.pool is not None:
            weights = self.pool(H).mT.masked_fill(padding[:, None], float("-inf")).softmax(-1)
            return (weights @ H).flatten(1), weights
        if self.config.pooling == "max":
            return H.masked_fill(padding[..., None], float("-inf")).amax(1), None
        return masked_mean(H, padding), None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """``logits: (batch, labels)``, ``attentions: ((batch, heads, seq),)`` and, with labels, ``loss``.

        Parameters
        ----------
        input_ids, attention_mask : Tensor
            ``(batch, seq)``, padded on the right.
        labels : Tensor, optional
            Labels of any kind that `classification_loss` takes.
        token_type_ids : Tensor, optional
            What tokenizers give beside the ids; all zero, since one text is read.

        Raises
        ------
        ValueError
            A mask that does not fit or is not padded on the right, a pair of texts, labels of another shape or kind.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        _check_right_padded(mask, input_ids)
        if token_type_ids is not None and bool(token_type_ids.any()):
            raise ValueError("token_type_ids mark a second text: LAMA reads one")
        read, weights = self.pooled(self.states(input_ids, mask), mask == 0)
        logits = self.classifier(self.drop(read))
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type)
            if self.config.redundancy_penalty and weights is not None:
                loss = loss + self.config.redundancy_penalty * redundancy(weights)
        attentions = None if weights is None else (weights,)
        return SequenceClassifierOutput(loss=loss, logits=logits, attentions=attentions)


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None = None) -> Tensor:
    """The loss that `transformers`' classifiers have for a ``problem_type``.

    Parameters
    ----------
    logits : Tensor
        ``(batch, n)``, the scores of n classes or the n predicted numbers.
    labels : Tensor
        ``regression``: ``(batch, n)`` numbers (``(batch,)`` for n = 1), squared error.
        ``single_label_classification``: ``(batch,)`` classes, cross-entropy. ``multi_label_classification``:
        ``(batch, n)`` zeros and ones, cross-entropy of each label by itself.
    problem_type : str, optional
        By default regression for n = 1, one class for whole-number labels, several otherwise.

    Examples
    --------
    >>> import torch
    >>> from rankwise.compression.lama import classification_loss
    >>> round(float(classification_loss(torch.zeros(2, 4), torch.tensor([0, 3]))), 3)  # log 4
    1.386
    """
    n = logits.shape[-1]
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if problem_type is None:
        problem_type = "regression" if n == 1 else f"{'single' if whole else 'multi'}_label_classification"
    if problem_type == "single_label_classification":
        if labels.numel() != len(logits) or not whole:
            raise ValueError(f"{problem_type} takes a whole number a text, got {labels.dtype} {tuple(labels.shape)}")
        return F.cross_entropy(logits, labels.flatten())
    if labels.shape != logits.shape and (n > 1 or labels.numel() != len(logits)):
        raise ValueError(f"{problem_type} takes labels of shape {tuple(logits.shape)}, got {tuple(labels.shape)}")
    labels = labels.reshape(logits.shape).to(logits.dtype)
    return (F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits)(logits, labels)


def attention_heads(d: int) -> int:
    """Heads of a Transformer layer of width d: of about 64 features each, a number that divides d."""
    return next(h for h in range(max(1, d // 64), 0, -1) if d % h == 0)


def positions(x: Tensor) -> Tensor:
    """Sinusoidal positions ``(seq, d)`` for states ``(batch, seq, d)``, a tenth of unit size like the embeddings."""
    n, d = x.shape[1:]
    angle = torch.arange(n, device=x.device)[:, None] / 10_000 ** (torch.arange(0, d, 2, device=x.device) / d)
    return 0.1 * torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :d].to(x.dtype)


def _check(x: Tensor, mask: Tensor | None, d_model: int) -> None:
    if x.dim() != 3 or x.shape[-1] != d_model or x.shape[1] == 0:
        raise ValueError(f"states of shape (batch, seq >= 1, {d_model}) are needed, got {tuple(x.shape)}")
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise ValueError(
            f"key_padding_mask must be bool of shape {tuple(x.shape[:2])}, True where padded; got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    empty = mask.all(1)
    if empty.any():
        rows = empty.nonzero().flatten().tolist()
        raise ValueError(f"every position is padding in row(s) {rows[:5]}: there is nothing to attend to")


def _check_right_padded(mask: Tensor, ids: Tensor) -> None:
    if mask.shape != ids.shape or mask.dim() != 2 or mask.shape[1] == 0:
        raise ValueError(
            f"input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)} must be (batch, seq >= 1)"
        )
    keep = mask != 0
    if not bool(keep[:, 0].all()) or bool((keep[:, 1:] & ~keep[:, :-1]).any()):
        raise ValueError(
            "attention_mask must start with 1 in every row and have nothing after a 0: pad on the right, and leave no "
            "text empty"
        )


AutoConfig.register(LamaConfig.model_type, LamaConfig, exist_ok=True)
AutoModelForSequenceClassification.register(LamaConfig, LamaClassifier, exist_ok=True)
