"""Memory and speed of training in low rank and of compression, side by side in one run.

Peak memory: a fresh process a way to train SmolLM2-135M (`bench.shared.fresh_process`). Times: medians of alternating
calls in this process.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.fresh_process import RANK, in_fresh_process
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.compression import LowRankAttentionPooling, LowRankLinear, apply, plan
from rankwise.events import OnEvent
from rankwise.models import linear_layers, load
from rankwise.optim import GaLoreAdamW, galore_groups
from rankwise.optim.galore import leading_basis
from rankwise.report.tables import size

RECIPE = Recipe(
    name="speed",
    part="footprint",
    about="memory and speed of GaLore, OwLore, WeLore and LAMA",
    smoke={"BLOCKS": 1, "STEPS": 2, "WIDTHS": (64, 128), "CALLS": 2, "POSITIONS": 64, "SHORTER": (8, 16)},
    control=False,
)

BLOCKS = 30  # of SmolLM2, all
STEPS = 4  # of training in a fresh process
WIDTHS = (576, 1024, 2048)  # of gradients
CALLS = 200  # of a layer
POSITIONS, SHORTER = 2048, (32, 128, 512)  # of attention

GAP = 200  # steps between refreshes, GaLore's default


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Measure everything; the inputs are fixed."""
    parts = {
        "memory": memory,
        "GaLore step": galore_step,
        "GaLore refresh": refresh,
        "WeLore": compression,
        "low-rank layers": layers,
        "LAMA": attention,
    }
    return side_by_side(
        parts,
        on_event,
        recipe="footprint",
        title="Memory and speed of low-rank training and compression",
        command="rankwise bench speed --part footprint",
        setting=f"{torch.get_num_threads()} threads, float32; memory: highest resident bytes of a fresh process less "
        "those of the interpreter and its libraries, 2 texts of 64 tokens, gradient checkpointing for all",
    )


def memory() -> Measured:
    """Peak training memory: OwLore, GaLore and LISA against full AdamW, galore-torch and LoRA."""
    ways = ("adamw", "galore-torch", "galore-in-backward", "lisa", "owlore", "lora")
    found = {way: in_fresh_process(way, steps=STEPS, blocks=BLOCKS) for way in ways}
    net = {way: f["peak"] - f["baseline"] for way, f in found.items()}
    pairs = [("owlore", "adamw"), ("owlore", "galore-torch"), ("galore-in-backward", "galore-torch"), ("lisa", "adamw")]
    pairs += [("lora", "adamw")]
    rows = [[f"memory, {a}", size(net[a]), b, size(net[b]), f"{net[a] / net[b]:.2f}x"] for a, b in pairs]
    rows += [
        [
            f"optimiser state, {way}",
            size(found[way]["state"]),
            "adamw",
            size(found["adamw"]["state"]),
            f"{found[way]['state'] / found['adamw']['state']:.2f}x",
        ]
        for way in ("owlore", "galore-in-backward")
    ]
    ratio, against = net["owlore"] / net["adamw"], net["owlore"] / net["galore-torch"]
    whole = found["owlore"]["peak"] / found["adamw"]["peak"]
    faster = found["adamw"]["seconds"] / found["owlore"]["seconds"]
    return rows, [
        Claim(
            text="OwLore trains SmolLM2-135M in at most 0.45x the memory of full AdamW",
            held=ratio <= 0.45,
            found=f"{ratio:.2f}x ({whole:.2f}x with the interpreter and its libraries); steps {faster:.1f}x faster",
        ),
        Claim(text="and in no more than galore-torch at equal rank", held=against <= 1, found=f"{against:.2f}x"),
    ]


def _smollm2() -> nn.Module:
    model = load("smollm2")
    del model.model.layers[BLOCKS:]
    return model


def galore_step() -> Measured:
    """The optimiser's step on SmolLM2's real shapes, averaged over a refresh every 200 steps."""
    from galore_torch import GaLoreAdamW as Reference

    model = _smollm2()
    ids = torch.randint(0, 49_000, (4, 64), generator=torch.Generator().manual_seed(0))
    begin = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    backward = time.perf_counter() - begin
    settings = {"rank": RANK, "update_proj_gap": GAP, "scale": 0.25, "proj_type": "std"}
    pair = [
        GaLoreAdamW(galore_groups(model, **settings), lr=0.0),
        Reference(galore_groups(model, **settings), lr=0.0, no_deprecation_warning=True),  # pyright: ignore[reportArgumentType]  (groups are its own use)
    ]
    first = []
    for optimizer in pair:
        begin = time.perf_counter()
        optimizer.step()
        first.append(time.perf_counter() - begin)
    plain = alternate(pair[0].step, pair[1].step, times=5)
    ours, theirs = ((first[i] + (GAP - 1) * plain[i]) / GAP for i in (0, 1))
    whole = (backward + ours) / (backward + theirs)
    return [
        [
            "GaLore step with its share of a refresh",
            f"{ours:.3f}s",
            "galore-torch",
            f"{theirs:.3f}s",
            f"{ours / theirs:.2f}x",
        ],
        [
            "a step that refreshes",
            f"{first[0]:.2f}s",
            "galore-torch",
            f"{first[1]:.2f}s",
            f"{first[0] / first[1]:.2f}x",
        ],
    ], [
        Claim(
            text="GaLore's optimiser step at most 0.7x galore-torch's, averaged over refreshes",
            held=ours / theirs <= 0.7,
            found=f"{ours / theirs:.2f}x; with forward and backward of 256 tokens {whole:.2f}x",
        )
    ]


def refresh() -> Measured:
    """The basis of a gradient-like matrix from the old one, against a full SVD, by width."""
    rows, ratios, kept = [], [], []
    for d in WIDTHS:
        old, new = _gradient(d, 0), _gradient(d, 1)
        r, results = d // 16, {}
        start = leading_basis(old, r)[0]

        def ours(new=new, r=r, start=start, results=results) -> None:
            results["ours"] = leading_basis(new, r, start=start, seed=1)[0]

        def full(new=new, r=r, results=results) -> None:
            results["full"] = leading_basis(new, r, svd="full")[0]

        a, b = alternate(ours, full, times=3 if d < 2000 else 1)
        held = {k: float((new @ Q.mT).square().sum()) for k, Q in results.items()}
        ratios.append(b / a)
        kept.append(held["ours"] / held["full"])
        rows.append(
            [
                f"basis of a {d} x {d} gradient, rank {r}",
                f"{1e3 * a:.0f}ms",
                "full SVD",
                f"{1e3 * b:.0f}ms",
                f"{b / a:.1f}x",
            ]
        )
    return rows, [
        Claim(
            text="a refresh at least 5x faster than a full SVD, holding at least 0.98 of the energy it holds",
            held=min(ratios) >= 5 and min(kept) >= 0.98,
            found=f"{', '.join(f'{x:.1f}x' for x in ratios)}; energy {', '.join(f'{x:.3f}' for x in kept)}",
        )
    ]


def _gradient(d: int, seed: int) -> Tensor:
    """Two batches' gradients: a shared part with the decay seen in SmolLM2's, and each its own."""
    shared, own = torch.Generator().manual_seed(9), torch.Generator().manual_seed(seed)
    decay = torch.arange(1, d + 1) ** -0.8
    A = torch.randn(d, d, generator=shared) * decay @ torch.randn(d, d, generator=shared)
    return A / A.norm() + 0.7 * torch.randn(d, d, generator=own) * decay @ torch.randn(d, d, generator=own) / d**1.1


def compression() -> Measured:
    """WeLore of SmolLM2, half of all directions removed, against full SVDs and a search by trying thresholds."""
    ours_model, theirs_model = _smollm2(), _smollm2()
    begin = time.perf_counter()
    chosen = plan(ours_model, ratio=0.5, min_ratio=0.0, only_if_smaller=False)
    apply(ours_model, chosen)
    ours = time.perf_counter() - begin
    begin = time.perf_counter()
    _the_authors_way(theirs_model, 0.5)
    theirs = time.perf_counter() - begin
    return [
        [
            "WeLore of SmolLM2-135M",
            f"{ours:.1f}s",
            "full SVDs, search by trying",
            f"{theirs:.1f}s",
            f"{theirs / ours:.1f}x",
        ]
    ], [
        Claim(
            text="WeLore of SmolLM2-135M in at most 60 s and at least 4x faster than full SVDs with a search by trying",
            held=ours <= 60 and theirs / ours >= 4,
            found=f"{ours:.1f} s, {theirs / ours:.1f}x",
        )
    ]


@torch.no_grad()
def _the_authors_way(model: nn.Module, target: float) -> None:
    """A full SVD a matrix for the spectra, thresholds tried on a grid, a full SVD again of what is factorised."""
    matrices = {n: layer.weight.detach().float() for n, layer in linear_layers(model).items()}
    spectra = {}
    for name, W in matrices.items():
        S = torch.linalg.svd(W, full_matrices=False)[1]  # the step that is timed
        spectra[name] = (S - S[-1]) / (S[0] - S[-1])
    total, k = sum(map(len, spectra.values())), 0.0
    while sum(int((k > S).sum()) for S in spectra.values()) / total < target:
        k += 0.0025
    for name, W in matrices.items():
        rank = int((spectra[name] >= k).sum())
        if rank < len(spectra[name]):  # the reference's default factorises whatever loses a direction
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
            _ = U[:, :rank] * S[:rank].sqrt(), S[:rank].sqrt()[:, None] * Vh[:rank]


def layers() -> Measured:
    """A factorised layer against the dense one, by rank, for 256 tokens."""
    rows, faster = [], []
    for out, inside in ((576, 576), (1536, 576)):
        dense = nn.Linear(inside, out, bias=False)
        even = out * inside // (out + inside)
        for share in (0.5, 0.75, 1.0):
            low = LowRankLinear(inside, out, max(1, round(share * even)), bias=False)
            x = torch.randn(256, inside)
            with torch.no_grad():
                a, b = alternate(lambda: _called(low, x), lambda: _called(dense, x), times=5)  # noqa: B023
            rows.append(
                [
                    f"{out} x {inside} at {share:g} of break-even",
                    f"{1e3 / CALLS * a:.2f}ms",
                    "dense",
                    f"{1e3 / CALLS * b:.2f}ms",
                    f"{b / a:.2f}x",
                ]
            )
            if share < 1:
                faster.append(b / a)
    return rows, [
        Claim(
            text="factorised layers faster than dense ones below the break-even rank out·in / (out + in)",
            held=min(faster) > 1,
            found=f"{', '.join(f'{x:.2f}x' for x in faster)} at 0.5 and 0.75 of it, 256 tokens",
        )
    ]


def _called(layer: nn.Module, x: Tensor) -> None:
    for _ in range(CALLS):
        layer(x)


def attention() -> Measured:
    """LAMA's pooling against ``nn.MultiheadAttention``, forward and backward, positions of 256, 16 heads."""
    x = torch.randn(2, POSITIONS, 256)
    pool, full = LowRankAttentionPooling(256, 16), nn.MultiheadAttention(256, 16, batch_first=True)

    def trained(call, x: Tensor = x):
        def run() -> None:
            y = x.clone().requires_grad_()
            call(y).sum().backward()

        return run

    def everything(y: Tensor) -> Tensor:
        return full(y, y, y)[0]

    a, b = alternate(trained(pool), trained(everything), times=3)
    fused = alternate(trained(pool), trained(lambda y: full(y, y, y, need_weights=False)[0]), times=3)
    rows = []
    for n in SHORTER:
        mine, theirs = alternate(trained(pool, x[:, :n]), trained(everything, x[:, :n]), times=5)
        cells = [f"{1e3 * mine:.1f}ms", "nn.MultiheadAttention", f"{1e3 * theirs:.1f}ms", f"{theirs / mine:.1f}x"]
        rows.append([f"LAMA, {n} x 256", *cells])
    kept = [saved_bytes(call, x) for call in (pool, everything, lambda y: full(y, y, y, need_weights=False)[0])]
    return [
        *rows,
        [
            f"LAMA, {POSITIONS} x 256, 16 heads",
            f"{1e3 * a:.0f}ms",
            "nn.MultiheadAttention",
            f"{1e3 * b:.0f}ms",
            f"{b / a:.0f}x",
        ],
        [
            "the same",
            f"{1e3 * fused[0]:.0f}ms",
            "without weights (fused)",
            f"{1e3 * fused[1]:.0f}ms",
            f"{fused[1] / fused[0]:.0f}x",
        ],
        ["activations kept", size(kept[0]), "nn.MultiheadAttention", size(kept[1]), f"{kept[1] / kept[0]:.0f}x"],
        ["the same", size(kept[0]), "without weights (fused)", size(kept[2]), f"{kept[2] / kept[0]:.1f}x"],
    ], [
        Claim(
            text="LAMA at least 10x faster than nn.MultiheadAttention with at least 20x less activation memory",
            held=b / a >= 10 and kept[1] / kept[0] >= 20,
            found=f"{b / a:.0f}x and {kept[1] / kept[0]:.0f}x; against its fused form without attention weights "
            f"{fused[1] / fused[0]:.0f}x and {kept[2] / kept[0]:.1f}x",
        )
    ]


def saved_bytes(call, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass besides the input and the parameters."""
    seen: dict[int, int] = {}
    y = x.clone().requires_grad_()

    def pack(t: Tensor) -> Tensor:
        owner = t if t._base is None else t._base  # a weight is saved as a view of it, transposed
        if not isinstance(owner, nn.Parameter) and not owner.is_leaf:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = call(y)
    seen.pop(y.untyped_storage().data_ptr(), None)
    del out
    return sum(seen.values())
