"""Outlier scores of layers: how many of a layer's weights stand out far above the rest.

With inputs ``x: (d_in,)`` of a linear layer ``W: (out, in)`` seen n times:

    A_ij = ‖X_·j‖₂ · |W_ij|,     D_ℓ = 100 · #{A_ij > M · mean(A)} / #A

over all linear layers of block ℓ together. Without data ``A_ij = |W_ij|``. Scaling W changes nothing.

Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", ICML 2024, arXiv 2310.05175; what OwLore
samples layers by.

What people get wrong: averaging the scores of a block's matrices. The mean that the threshold multiplies is that of the
whole block, so a matrix of large entries beside small ones is what makes the block stand out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rankwise.models.activations import Batch, input_norms
from rankwise.models.targets import blocks, linear_layers, stacked_experts


@torch.no_grad()
def outlier_scores(
    model: nn.Module,
    dataloader: Iterable[Batch] | None = None,
    *,
    threshold: float = 13.0,
    max_batches: int = 8,
    layers_attribute: str | None = None,
) -> Tensor:
    """``D_ℓ`` of every block, in per cent, over its linear layers: experts in one parameter are none, and do not count.

    Parameters
    ----------
    model : nn.Module
        A model of any dtype, on any device; it is left as it was.
    dataloader : iterable of dict of Tensor, optional
        Keyword arguments of the model; a few batches suffice. Without it the weights alone decide.
    threshold : float
        M; the authors of OwLore use 13, OWL's 3 to 10 also occur.
    max_batches : int
        Batches that are read at most.
    layers_attribute : str, optional
        Dotted name of the list of blocks, where it cannot be found.

    Returns
    -------
    Tensor
        ``(blocks,)``, float64.

    Raises
    ------
    ValueError
        No list of blocks, a threshold that is not positive, an empty loader, weights with NaN, or a dataloader for a
        model whose experts share one parameter: what each of them reads is not known.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from rankwise.models.outliers import outlier_scores
    >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...                      num_attention_heads=2)
    >>> model = LlamaForCausalLM(config)
    >>> with torch.no_grad():
    ...     model.model.layers[1].mlp.up_proj.weight[:2] = 5.0  # 32 of the block's 2560 weights stand out
    >>> outlier_scores(model).tolist()
    [0.0, 1.25]
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold} must be positive")
    experts = stacked_experts(model)
    if experts and dataloader is not None:
        raise ValueError(
            f"{next(iter(experts))} holds all experts, whose inputs are not told apart: leave out the data"
        )
    name, layers = blocks(model, layers_attribute=layers_attribute)
    linear = linear_layers(model)
    norms = None if dataloader is None else input_norms(model, dataloader, linear, max_batches=max_batches)
    scores = []
    for index in range(len(layers)):
        block = f"{name}.{index}."
        inside = [n for n in linear if n.startswith(block)]
        magnitudes = [_magnitude(linear[n], None if norms is None else norms[n]) for n in inside]
        magnitudes += [p.detach().float().abs() for n, p in experts.items() if n.startswith(block)]
        scores.append(_share_above(magnitudes, threshold) if magnitudes else 0.0)
    found = torch.tensor(scores, dtype=torch.float64)
    if not torch.isfinite(found).all():
        broken = [f"{name}.{i}" for i in (~torch.isfinite(found)).nonzero().flatten().tolist()]
        raise ValueError(f"weights with NaN or Inf in {', '.join(broken[:5])}: they have no outlier score")
    return 100 * found


def _magnitude(layer: nn.Module, norms: Tensor | None) -> Tensor:
    """``A: (out, in)``, float32."""
    W = layer.get_parameter("weight").detach().float()
    W = W if isinstance(layer, nn.Linear) else W.mT
    return W.abs() if norms is None else W.abs() * norms.to(W)


def _share_above(magnitudes: list[Tensor], threshold: float) -> float:
    entries = sum(a.numel() for a in magnitudes)
    mean = sum(float(a.double().sum()) for a in magnitudes) / entries
    above = sum(int((a > threshold * mean).sum()) for a in magnitudes)
    return above / entries if mean == mean and mean != float("inf") else float("nan")
