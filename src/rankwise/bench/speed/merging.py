"""Merging side by side with mergekit: time and peak memory of whole processes on the same checkpoint of over 2 GB.

A Llama of 1.1 billion random bfloat16 weights in shards of up to 1 GB, and two fine-tunes of it, written once. Each
merge is a process of its own, timed from its start to its end, alternately; memory is the most it held resident. Beside
it, TSVM of single matrices against full SVDs, as its authors' code takes them, on flat (iid Gaussian) and on falling
spectra.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
import yaml
from torch import Tensor

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.events import OnEvent, environment
from rankwise.files import claimed, whole_folder
from rankwise.merging import tsvm
from rankwise.merging.shards import ShardWriter, Slot, checkpoint_entries
from rankwise.report.tables import size
from rankwise.spectral import each

RECIPE = Recipe(
    name="speed",
    part="merging",
    about="merging against mergekit",
    smoke={
        "seeds": 1, "SHAPES": ((64, 64), (96, 64)),
        "LLAMA": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320, "hidden_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 1, "intermediate_size": 96,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16",
        },
    },
    control=False,
)  # fmt: skip

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
SHAPES = ((2048, 2048), (5632, 2048))  # of single matrices
SPECTRA = {"flat": 0.0, "falling": 0.5}  # σ_i is about i to the minus so much
SHARD = 1_000_000_000
RECIPES = {
    "task arithmetic": ("task_arithmetic", {"weight": 0.5}),
    "TIES": ("ties", {"weight": 0.5, "density": 0.3}),
}


def run(out: Path, *, seeds: int = 3, on_event: OnEvent | None = None) -> Evidence:
    """Write the checkpoint, time every pair ``seeds`` times (inputs are fixed), judge the claims."""
    with claimed(out, made_by="bench speed --part merging", told={"model": LLAMA, "shard": SHARD}) as folder:
        return _run(folder, seeds, on_event or (lambda *_: None))


def _run(out: Path, seeds: int, note: OnEvent) -> Evidence:
    start = time.perf_counter()
    folders = [_checkpoint(out / name, seed, note) for seed, name in enumerate(("base", "first", "second"))]
    shard = max(p.stat().st_size for p in folders[0].glob("*.safetensors"))
    rows, claims = [], []
    for title, (method, parameters) in RECIPES.items():
        recipe = out / f"{method}.yaml"
        models = [{"model": str(f), "parameters": parameters} for f in folders[1:]]
        recipe.write_text(
            yaml.safe_dump(
                {"merge_method": method, "base_model": str(folders[0]), "models": models, "dtype": "bfloat16"}
            )
        )
        ours, theirs = _alternate(recipe, out, seeds, lambda i, t=title: note(t, "train", i, seeds, float("nan")))
        seconds, peak = theirs[0] / ours[0], theirs[1] / ours[1]
        rows.append([f"{title}, time", f"{ours[0]:.1f}s", "mergekit", f"{theirs[0]:.1f}s", f"{seconds:.1f}x"])
        rows.append([f"{title}, peak memory", size(ours[1]), "mergekit", size(theirs[1]), f"{peak:.2f}x"])
        claims += [
            Claim(
                text=f"{title} at least 1.5x faster than mergekit at no more memory",
                held=seconds >= 1.5 and peak >= 1,
                found=f"{seconds:.1f}x, {size(ours[1])} against {size(theirs[1])}",
            ),
            Claim(
                text=f"{title}: peak memory below 1.5 times the largest shard",
                held=ours[1] < 1.5 * shard,
                found=f"{size(ours[1])}, interpreter and libraries included; the shard has {size(shard)}",
            ),
        ]
        note(title, "done", 1, 1, float("nan"))
    some_rows, some_claims = singular_vectors(note)
    total = sum(e.bytes for e in checkpoint_entries(folders[0]).values())
    return Evidence(
        recipe="merging",
        title="Merging against mergekit",
        command="rankwise bench speed --part merging",
        setting=f"three Llamas of {size(total)} each in bfloat16, {torch.get_num_threads()} threads; medians of "
        f"{seeds} whole processes each, alternating; TSVM in one process",
        header=["what", "ours", "against", "theirs", "ratio"],
        rows=rows + some_rows,
        claims=claims + some_claims,
        seconds=time.perf_counter() - start,
        environment=environment("bf16", 1),
    )


def _alternate(recipe: Path, out: Path, times: int, note) -> tuple[tuple[float, float], tuple[float, float]]:
    """Median seconds and peak bytes of ours and of mergekit's."""
    binaries = Path(sys.executable).parent
    commands = {
        "ours": [str(binaries / "rankwise"), "merge", str(recipe), "--out", str(out / "ours"), "--shard-size", "1GB"],
        "theirs": [str(binaries / "mergekit-yaml"), str(recipe), str(out / "theirs"), "--no-copy-tokenizer",
                   "--out-shard-size", "1B"],
    }  # fmt: skip
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for i in range(times):
        note(i)
        for name, command in commands.items():
            shutil.rmtree(out / name, ignore_errors=True)
            measured[name].append(_measured(command))
            shutil.rmtree(out / name, ignore_errors=True)

    def middle(name: str) -> tuple[float, float]:
        seconds, peak = (sorted(x)[times // 2] for x in zip(*measured[name], strict=True))
        return seconds, peak

    return middle("ours"), middle("theirs")


# A process counts what its parent held when it was forked: a small one in between keeps this one's memory out.
_LAUNCHER = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def _measured(command: list[str]) -> tuple[float, float]:
    """Seconds, and the most resident bytes, of a process."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-S", "-c", _LAUNCHER, *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-500:]}")
    return time.perf_counter() - begin, 1024.0 * int(done.stdout)


def _checkpoint(folder: Path, seed: int, note) -> Path:
    """A Llama of random weights; the fine-tunes (seed above 0) lie near the base (seed 0)."""
    if folder.is_dir():
        return folder
    d, kv = LLAMA["hidden_size"], LLAMA["hidden_size"] // 8
    wide = LLAMA["intermediate_size"]
    layer = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d)}
    layer |= {"self_attn.o_proj": (d, d), "mlp.gate_proj": (wide, d), "mlp.up_proj": (wide, d)}
    layer |= {"mlp.down_proj": (d, wide), "input_layernorm": (d,), "post_attention_layernorm": (d,)}
    shapes = {"model.embed_tokens.weight": (LLAMA["vocab_size"], d)}
    for i in range(LLAMA["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{n}.weight": s for n, s in layer.items()}
    shapes |= {"model.norm.weight": (d,), "lm_head.weight": (LLAMA["vocab_size"], d)}
    with whole_folder(folder, made_by="bench") as draft:
        writer = ShardWriter(draft, [Slot(n, torch.bfloat16, s) for n, s in shapes.items()], shard_size=SHARD)
        for i, (name, shape) in enumerate(shapes.items()):
            weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(i))
            if seed:
                weight += 0.002 * torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + i))
            writer.write(name, weight.bfloat16())
            note(f"checkpoint {folder.name}", "train", i, len(shapes), float("nan"))
        writer.close(finished=True)
        (draft / "config.json").write_text(json.dumps(LLAMA))
    return folder


def singular_vectors(note) -> tuple[list[list[str]], list[Claim]]:
    """TSVM of two and of three experts, two matrices of each kind, against full SVDs of every part.

    Both work at two matrices at a time. Bases that are orthonormal give the merged task vector the singular values that
    the experts kept, whichever of two nearly equal directions is among them. The limit is the time of those products
    ``AᵀA`` around which no way is known: one an expert for its Gram matrix, one for all ``τ V``, one for each factor.
    """
    rows, claims, found = [], [], {2: [], 3: []}
    apart, energy, differ = [0.0], [0.0], [0.0]
    tsvm(torch.zeros(200, 200), [torch.randn(200, 200)] * 2, dtype=torch.float32, weight=[1.0, 1.0])  # loads SciPy
    for shape, (name, fall), T in product(SHAPES, SPECTRA.items(), (2, 3)):
        what = f"TSVM, {shape[0]} x {shape[1]}, {name}, {T} experts"
        note(what, "train", 0, 1, float("nan"))
        torch.manual_seed(0)
        spectrum = torch.arange(1, shape[1] + 1) ** -fall
        problems = []
        for _ in range(2):
            base = torch.randn(shape)
            problems.append((base, [base + torch.randn(shape) / shape[1] ** 0.5 * spectrum for _ in range(T)]))
        ours, mine = _timed(lambda p: tsvm(*p, dtype=torch.float32, weight=[1.0] * len(p[1])), problems)
        full, theirs = _timed(lambda p: full_svds(*p), problems)
        limit = (T + 3) * _timed(lambda p: p[0].mT @ p[0], problems)[0]
        found[T].append((full / ours, limit / ours))
        for (base, experts), a, b in zip(problems[:1], mine, theirs, strict=False):
            tau = a - base
            kept = torch.cat([torch.linalg.svdvals(e - base)[: min(shape) // T] for e in experts]).sort(descending=True)
            values = torch.linalg.svdvals(tau)[: len(kept.values)]
            apart.append(float((values - kept.values).norm() / kept.values.norm()))
            size = torch.linalg.vector_norm(tau, dtype=torch.float64)  # in float32 it is 5e-4 off for so many entries
            energy.append(abs(float(size.square() / kept.values.double().square().sum()) - 1))
            differ.append(float((a - b).norm() / (b - base).norm()))
        rows.append([what, f"{ours:.1f}s", "full SVDs", f"{full:.1f}s", f"{full / ours:.1f}x"])
    for T, least in ((2, 3), (3, 2)):
        claims.append(
            Claim(
                text=f"TSVM of {T} experts at least {least}x faster than full SVDs, square and tall, flat and falling "
                "spectra",
                held=min(r for r, _ in found[T]) >= least,
                found=f"{', '.join(f'{r:.1f}x' for r, _ in found[T])}; {', '.join(f'{r:.2f}' for _, r in found[T])} of "
                f"the speed of {T + 3} products AᵀA alone",
            )
        )
    return rows, [
        *claims,
        Claim(
            text="TSVM's singular values and its energy are to 1e-4 those that the experts kept, and it is within 1e-3 "
            "of full SVDs",
            held=all(x <= 1e-4 for x in (*apart, *energy)) and all(x <= 1e-3 for x in differ),
            found=f"values {max(apart):.0e}, energy {max(energy):.0e}, difference {max(differ):.0e}",
        ),
    ]


def _timed(call: Callable, problems: Sequence) -> tuple[float, list]:
    """Seconds a problem, and what was found."""
    begin = time.perf_counter()
    found = list(each(call, problems))
    return (time.perf_counter() - begin) / len(problems), found


@torch.no_grad()
def full_svds(base: Tensor, experts: list[Tensor]) -> Tensor:
    """A full SVD a task vector, and one a polar factor."""
    k = min(base.shape) // len(experts)
    U, S, V = [], [], []
    for e in experts:
        u, s, vh = torch.linalg.svd(e - base, full_matrices=False)  # the step that is timed
        U.append(u[:, :k])
        S.append(s[:k])
        V.append(vh[:k])
    pu, _, qu = torch.linalg.svd(torch.cat(U, 1), full_matrices=False)
    pv, _, qv = torch.linalg.svd(torch.cat(V), full_matrices=False)
    return base + (pu @ qu * torch.cat(S)) @ (pv @ qv)
