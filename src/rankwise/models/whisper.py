"""Whisper on short audio without computing its padding: a drop-in encoder, closer to the original than bfloat16 is.

Whisper pads every recording to 30 s of silence, 1,500 positions, and its attention reads them: cutting them off changes
the transcript. But silent positions differ only by their position embedding, and neighbours nearly agree. So of the
silence only every ``stride``-th position is computed, and as a key it counts for all that it stands for:

    softmax(q·k + log w)        w = 1 in speech, about ``stride`` in silence

The encoder still returns all 1,500 positions, a skipped one with the state between its computed neighbours, so that the
decoder, `generate` and adapters see nothing new. Audio that fills 30 s is computed as ever, and ``stride=1`` always is.

What people get wrong: the silent frames are not zeros but the floor of the log-mel scale, which depends on the loudest
frame; and the convolutions see the end of the recording, so a margin after speech and the last positions stay exact.
"""

# (attributes of torch modules are only known at run time)

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

MARGIN, TAIL = 25, 25  # exact positions after the speech and at the end (20 ms each)


def shorten(model: PreTrainedModel, *, stride: int = 2) -> PreTrainedModel:
    """Let the model's encoder skip silence, in place.

    Parameters
    ----------
    model : WhisperForConditionalGeneration or WhisperModel
        Any device and dtype; weights and interfaces stay as they are.
    stride : int
        Every how many silent positions one is computed; 1 computes all. Default 2.

    Raises
    ------
    ValueError
        A stride below 1, or a model without a Whisper encoder.

    Examples
    --------
    >>> import torch
    >>> from transformers import WhisperConfig, WhisperModel
    >>> from rankwise.models.whisper import shorten
    >>> config = WhisperConfig(num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1,
    ...                        encoder_attention_heads=2, decoder_attention_heads=2, max_source_positions=200)
    >>> model, features = WhisperModel(config).eval(), torch.randn(1, 8, 400)  # no silence to skip
    >>> before = model.encoder(features).last_hidden_state
    >>> torch.allclose(shorten(model).encoder(features).last_hidden_state, before, atol=1e-5)
    True
    """
    if stride < 1:
        raise ValueError(f"stride={stride}; 1 (compute everything) or more is needed")
    encoder: Any = next((m for m in model.modules() if isinstance(m, WhisperEncoder)), None)
    if encoder is None:
        raise ValueError(f"{type(model).__name__} has no Whisper encoder to shorten")
    encoder.__class__ = ShortAudioEncoder
    encoder.stride, encoder.kept = stride, None
    return model


def spoken_positions(features: Tensor, positions: int) -> list[int]:
    """Encoder positions up to the last mel frame that differs from the final (silent) one, a number a row.

    ``features``: ``(batch, mels, 2 · positions)``.
    """
    differs = (features != features[..., -1:]).any(1)
    last = torch.where(differs, torch.arange(1, differs.shape[1] + 1, device=differs.device), 0).amax(1)
    # one mel frame reaches two positions further through the two convolutions
    return [min(positions, n // 2 + 2) for n in last.tolist()]


def computed_positions(spoken: int, positions: int, stride: int) -> tuple[Tensor, Tensor]:
    """Which positions are computed, and how many each stands for (they sum to ``positions``).

    A skipped position counts for the computed ones beside it, by its distance from them.

    Examples
    --------
    >>> from rankwise.models.whisper import computed_positions
    >>> at, weight = computed_positions(spoken=100, positions=1500, stride=2)
    >>> len(at), round(float(weight.sum()))
    (825, 1500)
    """
    exact = min(spoken + MARGIN, positions)
    end = max(exact, positions - TAIL)
    middle = torch.arange(min(exact + stride - 1, end), end, stride)
    at = torch.cat([torch.arange(exact), middle, torch.arange(end, positions)])
    left, right, share = neighbours(at, positions)
    return at, torch.zeros(len(at)).index_add(0, left, 1 - share).index_add(0, right, share)


def neighbours(at: Tensor, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """For every position, where in ``at`` its computed neighbours are, left and right, and the right one's share."""
    every = torch.arange(positions)
    right = torch.searchsorted(at, every)
    left = torch.where(at[right] == every, right, (right - 1).clamp(min=0))
    return left, right, ((every - at[left]) / (at[right] - at[left]).clamp(min=1)).float()


class ShortAudioEncoder(WhisperEncoder):
    """`WhisperEncoder` that computes a share of the silence; made by `shorten`.

    Examples
    --------
    >>> import torch
    >>> from transformers import WhisperConfig, WhisperModel
    >>> from rankwise.models.whisper import encoder_of, shorten
    >>> config = WhisperConfig(num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1,
    ...                        encoder_attention_heads=2, decoder_attention_heads=2, max_source_positions=200)
    >>> model = shorten(WhisperModel(config), stride=4)
    >>> encoder = encoder_of(model)
    >>> encoder(torch.zeros(1, 8, 400)).last_hidden_state.shape  # every position, most of them interpolated
    torch.Size([1, 200, 32])
    """

    stride: int
    kept: dict[bytes, Tensor] | None  # states below the first trained layer, by recording; None: not kept

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs) -> BaseModelOutput:
        """All positions ``(batch, 1500, dim)`` of features ``(batch, mels, 3000)``."""
        positions = self.config.max_source_positions
        if input_features.shape[-1] != 2 * positions:
            raise ValueError(f"{input_features.shape[-1]} mel frames; Whisper's features have {2 * positions} (30 s)")
        spoken = spoken_positions(input_features, positions)
        chosen = [computed_positions(n, positions, self.stride) for n in spoken]
        at = pad_sequence([a for a, _ in chosen], batch_first=True).to(input_features.device)
        weight = pad_sequence([w for _, w in chosen], batch_first=True).to(input_features.device)
        first = self.first_trained_layer()
        h = self._below(input_features, at, weight, spoken, first)
        for layer in self.layers[first:]:
            h = layer(h, self._bias(weight, h))
        return BaseModelOutput(last_hidden_state=_spread(self.layer_norm(h), chosen, positions))

    def first_trained_layer(self) -> int:
        """Index of the lowest layer that trains or holds an adapter; 0 when the convolutions do."""
        if any(p.requires_grad for m in (self.conv1, self.conv2, self.embed_positions) for p in m.parameters()):
            return 0
        touched = [
            any(p.requires_grad for p in layer.parameters()) or any(hasattr(m, "base_layer") for m in layer.modules())
            for layer in self.layers
        ]
        return touched.index(True) if True in touched else len(self.layers)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While open, states below the first trained layer are computed once a recording and kept.

        The layers below must not change meanwhile. Costs ``positions · dim · 4`` bytes a recording in float32.
        """
        self.kept = {}
        try:
            yield
        finally:
            self.kept = None

    def _below(self, features: Tensor, at: Tensor, weight: Tensor, spoken: list[int], first: int) -> Tensor:
        """Hidden states entering layer ``first``, at the computed positions."""
        if first == 0 or self.kept is None or (self.training and self.dropout > 0):
            return self._layers_below(features, at, weight, first)
        keys = [_key(f, n) for f, n in zip(features, spoken, strict=True)]
        new = list({k: i for i, k in enumerate(keys) if k not in self.kept}.values())
        if new:
            with torch.no_grad():
                states = self._layers_below(features[new], at[new], weight[new], first)
            for i, h in zip(new, states, strict=True):
                self.kept[keys[i]] = h[weight[i] > 0].clone()
        return pad_sequence([self.kept[k] for k in keys], batch_first=True)

    def _layers_below(self, features: Tensor, at: Tensor, weight: Tensor, first: int) -> Tensor:
        h = self._stem(features, at)
        for layer in self.layers[:first]:
            h = layer(h, self._bias(weight, h))
        return h

    def _stem(self, features: Tensor, at: Tensor) -> Tensor:
        """Convolutions and position embeddings; silence is convolved once, being the same everywhere but at the end."""
        positions = self.config.max_source_positions
        frames = min(2 * positions, 2 * (max(spoken_positions(features, positions)) + 4))
        h = F.gelu(self.conv1(features[..., :frames]))
        h = F.gelu(self.conv2(h)).transpose(1, 2)
        n = h.shape[1]
        source = at.clamp(max=n - 2) if n < positions else at
        source = torch.where(at == positions - 1, n - 1, source)
        h = h.gather(1, source[..., None].expand(-1, -1, h.shape[2])) + self.embed_positions(at)
        return F.dropout(h, p=self.dropout, training=self.training)

    @staticmethod
    def _bias(weight: Tensor, like: Tensor) -> Tensor | None:
        """``log w`` as an additive mask ``(batch, 1, queries, keys)``; ``None`` where every position is computed."""
        if bool((weight == 1).all()):
            return None
        bias = weight.log().clamp(min=torch.finfo(torch.float32).min / 2).to(like.dtype)
        return bias[:, None, None, :].expand(-1, 1, weight.shape[1], -1)


def _spread(h: Tensor, chosen: list[tuple[Tensor, Tensor]], positions: int) -> Tensor:
    """States of all positions: computed ones as they are, skipped ones interpolated between their neighbours."""
    if all(len(at) == positions for at, _ in chosen):
        return h
    found = [neighbours(at, positions) for at, _ in chosen]
    left, right, share = (torch.stack(x).to(h.device)[..., None] for x in zip(*found, strict=True))
    left, right = (i.expand(-1, -1, h.shape[2]) for i in (left, right))
    return torch.lerp(h.gather(1, left), h.gather(1, right), share.to(h))


def _key(features: Tensor, spoken: int) -> bytes:
    """Names a recording by its features."""
    data = features[:, : 2 * spoken].detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).digest()


def encoder_of(model: nn.Module) -> ShortAudioEncoder | None:
    """The shortened encoder inside a model or its PEFT wrapper, where there is one."""
    return next((m for m in model.modules() if isinstance(m, ShortAudioEncoder)), None)
