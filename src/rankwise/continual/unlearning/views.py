"""An encoder tuned on one request's texts: it fills masks, and tells each text's masked view from the others'.

    loss = MLM + Σ_l mean_n H(softmax_k(z¹_n · z²_k)),    H(p) = -Σ_k p_k log(p_k + 1e-5)

``z¹`` are layer l's mean states of the masked view by the encoder with the request's block, ``z²`` those of the clean
view by the encoder as it was. Products are raw, without labels or temperature, as in the released code; padding does
not count here, and does there. Masked tokens are predicted by the encoder's own word vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.continual.training import Schedule, draw, rows_of, train
from rankwise.continual.unlearning.blocks import Factors, acting, fresh
from rankwise.continual.unlearning.features import LayerEncoder, mean_over

MASKED = 0.15
RANK, SCALING, DROPOUT = 8, 4.0, 0.1
TARGETS = ("query", "key", "value")


def entropy(z1: Tensor, z2: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean over rows of the entropy of ``softmax(z1 z2ᵀ)``."""
    p = (z1 @ z2.mT).softmax(-1)
    return -(p * (p + eps).log()).sum(-1).mean()


def tuned(encoder: LayerEncoder, texts: Sequence[str], *, steps: int, learning_rate: float, seed: int) -> Factors:
    """A block on the encoder's queries, keys and values, trained on these texts."""
    ids, _ = encoder.chunks(texts)
    layers = {n: m for n, m in encoder.layers.items() if n.endswith(TARGETS)}
    if not layers:
        raise ValueError(f"{encoder} has no layers named {', '.join(TARGETS)}: leave encoder_steps at 0")
    device = encoder.model.device
    start = fresh(layers, RANK, [], seed=seed)
    block: Factors = {n: (nn.Parameter(A.to(device)), nn.Parameter(B.to(device))) for n, (A, B) in start.items()}
    parameters: Any = {f"{n}|{i}": p for n, pair in block.items() for i, p in enumerate(pair)}
    schedule = Schedule(steps=steps, batch_size=8, learning_rate=learning_rate)

    def loss(step: int) -> Tensor:
        rows = [ids[i] for i in rows_of(step, len(ids), schedule.batch_size, seed)]
        return _loss(encoder, block, rows, seed=draw(seed, step))

    frozen = [p for p in encoder.model.parameters() if p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(False)
        train(parameters, loss, schedule, seed)
    finally:
        for p in frozen:
            p.requires_grad_(True)
    # with the scaling folded in
    return {n: (A.detach().cpu(), SCALING * B.detach().cpu()) for n, (A, B) in block.items()}


def _loss(encoder: LayerEncoder, block: Factors, rows: list[list[int]], *, seed: int) -> Tensor:
    tokens, model = encoder.tokenizer, encoder.model
    generator = torch.Generator().manual_seed(seed)
    special = set(tokens.all_special_ids)
    hidden = [[i not in special and float(torch.rand((), generator=generator)) < MASKED for i in ids] for ids in rows]
    masked: Any = [
        [tokens.mask_token_id if h else i for i, h in zip(ids, hides, strict=True)]
        for ids, hides in zip(rows, hidden, strict=True)
    ]
    with torch.no_grad():
        clean = encoder.states(rows)
    with acting(encoder.layers, [block], torch.ones(1, 1), scaling=SCALING, dropout=DROPOUT):
        batch = tokens.pad({"input_ids": masked}, return_tensors="pt").to(model.device)
        states = model(**batch, output_hidden_states=True).hidden_states[1:]
    views = [mean_over(s, batch["attention_mask"]) for s in states]
    total = torch.stack([entropy(view, clean[:, layer]) for layer, view in enumerate(views)]).sum()
    places = [(n, t) for n, hides in enumerate(hidden) for t, h in enumerate(hides) if h]
    if places:
        n, t = (torch.tensor(side, device=model.device) for side in zip(*places, strict=True))
        wanted = torch.tensor([rows[a][b] for a, b in places], device=model.device)
        total = total + nn.functional.cross_entropy(states[-1][n, t] @ model.get_input_embeddings().weight.mT, wanted)
    return total
