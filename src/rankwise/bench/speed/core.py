"""Speed, side by side in one run: every figure is a ratio against the tool that people use today.

Each pair is timed in turn, several times where a run is short, and the ratio of the medians is reported with what must
stay equal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.data import sentiment, speech
from rankwise.events import OnEvent, environment
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import TextTask
from rankwise.jobs.trial import Training, TrialResult, dataset, ordered, train
from rankwise.models import load, load_tokenizer, target_modules
from rankwise.models.activations import ActivationSpectra
from rankwise.models.whisper import shorten
from rankwise.spectral import StreamingSVD, gram, principal_angles, truncated_svd
from rankwise.tuning.eva import EvaConfig, activation_spectra, redistribute
from rankwise.tuning.s2lora import S2LoraConfig

RECIPE = Recipe(
    name="speed",
    part="core",
    about="speed ratios: streaming and truncated SVD, EVA's start, S2-LoRA's step, speech training",
    smoke={
        "STREAMED": 2_000, "BATCH": 500, "MATRICES": 2, "SNIPPETS": 32, "TIMES": 1, "RECORDINGS": 2, "TRAINED": 1,
    },
    control=False,
)  # fmt: skip

STREAMED, BATCH = 100_000, 3_840  # rows, and those of a batch
MATRICES = 24
SNIPPETS = 512
TIMES = 15  # pairs of training steps
RECORDINGS, TRAINED = 16, 8  # of speech, and those of a step

Measured = tuple[list[list[str]], list[Claim]]  # rows and claims
Result = TypeVar("Result")


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time every pair; the inputs are fixed."""
    parts = {
        "streaming SVD": streaming,
        "truncated SVD": truncated,
        "EVA start": eva_start,
        "S2-LoRA step": step,
        "speech training": speech_training,
    }
    return side_by_side(
        parts,
        on_event,
        recipe="speed",
        title="Speed ratios",
        command="rankwise bench speed",
        setting=f"{torch.get_num_threads()} threads; medians of alternating runs in one process",
    )


def side_by_side(
    parts: Mapping[str, Callable[[], Measured]], on_event: OnEvent | None, *, recipe: str, title: str, command: str,
    setting: str,
) -> Evidence:  # fmt: skip
    """Measure every part, in order: rows of ours against theirs, and claims."""
    start, note = time.perf_counter(), on_event or (lambda *_: None)
    rows, claims = [], []
    for name, measure in parts.items():
        note(name, "train", 0, 1, float("nan"))
        some_rows, some_claims = measure()
        rows += some_rows
        claims += some_claims
        note(name, "done", 1, 1, float("nan"))
    return Evidence(
        recipe=recipe,
        title=title,
        command=command,
        setting=setting,
        header=["what", "ours", "against", "theirs", "ratio"],
        rows=rows,
        claims=claims,
        seconds=time.perf_counter() - start,
        environment=environment("fp32", 1),
    )


def alternate(ours: Callable[[], object], theirs: Callable[[], object], *, times: int = 3) -> tuple[float, float]:
    """Median seconds of each, run in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for call, kept in zip((ours, theirs), seconds, strict=True):
            begin = time.perf_counter()
            call()
            kept.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def timed(call: Callable[[], Result], times: int) -> tuple[float, Result]:
    """Median seconds and the last result."""
    seconds, found = [], []
    for _ in range(times):
        begin = time.perf_counter()
        found = [call()]
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), found[0]


def _row(what: str, ours: float, against: str, theirs: float) -> list[str]:
    return [what, f"{ours:.2f}s", against, f"{theirs:.2f}s", f"{theirs / ours:.1f}x"]


def gapped_rows(n: int, d: int = 768, k: int = 16) -> torch.Tensor:
    """Rows off centre whose spectrum has a gap after the k-th direction (standard deviation 8, then 1).

    The incremental methods compared with drop what lies below at every batch: the gap bounds what that costs them.
    """
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, k, generator=g)).Q
    return torch.randn(n, k, generator=g) * torch.linspace(16, 8, k) @ basis.T + torch.randn(n, d, generator=g) + 0.5


def streaming() -> Measured:
    """Rows of 768, 16 components, against scikit-learn's `IncrementalPCA`, the one inside PEFT's EVA, and the fastest
    simple thing: all rows in memory, one product for their Gram matrix, and its eigenproblem."""
    from peft.utils.incremental_pca import IncrementalPCA as PeftPCA
    from sklearn.decomposition import IncrementalPCA

    X, k, size = gapped_rows(STREAMED), 16, BATCH
    array, results = X.numpy(), {}

    def ours() -> None:
        stream = StreamingSVD(k)
        for rows in X.split(size):
            stream.partial_fit(rows)
        results["ours"] = stream.components()[1]

    def sklearn() -> None:
        results["scikit-learn"] = torch.from_numpy(IncrementalPCA(k, batch_size=size).fit(array).components_)

    def peft() -> None:
        pca = PeftPCA(n_components=k, lowrank=True, lowrank_seed=42, batch_size=size)
        results["PEFT"] = pca.fit(X).components_

    def at_once() -> None:
        centred = X - X.mean(0)
        results["at once"] = torch.linalg.eigh(centred.T @ centred)[1][:, -k:].T

    rows, claims = [], []
    for name, theirs, label, times, least in (
        ("scikit-learn", sklearn, "sklearn IncrementalPCA", 1, 3),
        ("PEFT", peft, "peft IncrementalPCA", 3, 3),
        ("at once", at_once, "one Gram matrix of all rows in memory and its eigenproblem", 5, 1),
    ):
        a, b = alternate(ours, theirs, times=times)
        angle = float(principal_angles(results["ours"].T, results[name].T).max())
        rows.append(_row("streaming SVD", a, label, b))
        claims.append(
            Claim(
                text=f"streaming SVD at least {least}x as fast as {label}, largest angle below 1e-3",
                held=b / a >= least and angle < 1e-3,
                found=f"{b / a:.1f}x, angle {angle:.1e}",
            )
        )
    a, limit = alternate(ours, lambda: gram(X), times=5)
    rows.append(_row("streaming SVD", a, "limit: the symmetric product XᵀX alone", limit))
    return rows, claims


def truncated() -> Measured:
    """Rank 16 of matrices 768 × 768, against a loop over `torch.linalg.svd` and `torch.svd_lowrank` of equal error."""
    A = spectra(MATRICES)["power 0.7"]
    results: dict = {}

    def ours() -> None:
        results["ours"] = truncated_svd(A, 16)

    def loop() -> None:
        results["S"] = torch.stack([torch.linalg.svd(a, full_matrices=False)[1] for a in A])

    a, b = alternate(ours, loop, times=2)
    excess = _excess(results["ours"].error, results["S"])
    row = _row("truncated SVD", a, "torch.linalg.svd loop", b)
    claim = Claim(
        text="truncated SVD of many matrices at least 5x faster than a torch loop, error within 1% of optimal",
        held=b / a >= 5 and excess <= 0.01,
        found=f"{b / a:.1f}x, error {100 * excess:.2f}% above optimal",
    )
    found = [_against_lowrank(name, A) for name, A in spectra(MATRICES).items()]
    worst = min(ratio for _, ratio, _ in found)
    return [row, *(row for row, _, _ in found)], [
        claim,
        Claim(
            text="truncated SVD at least 1.3x faster than torch.svd_lowrank with as many extra directions and as many "
            "iterations as our error takes, on flat, linear and power spectra",
            held=worst >= 1.3,
            found="; ".join(told for _, _, told in found),
        ),
    ]


def spectra(matrices: int, n: int = 768) -> dict[str, torch.Tensor]:
    """So many square matrices of each spectrum: iid Gaussian (flat), falling linearly, falling by a power."""
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(matrices, n, n, generator=g)
    left, right = (torch.linalg.qr(torch.randn(matrices, n, n, generator=g)).Q for _ in range(2))
    at = torch.arange(1, n + 1)
    falling = {"linear": 1 - (at - 1) / n, "power 0.7": at**-0.7, "power 1": 1 / at}
    return {"flat": flat} | {name: (left * s) @ right for name, s in falling.items()}


def _excess(error: torch.Tensor, S: torch.Tensor, k: int = 16) -> float:
    """By how much the largest relative error of rank ``k`` lies above the smallest possible one."""
    S = S.double().square()
    return float((error / (S[:, k:].sum(1) / S.sum(1)).sqrt() - 1).max())


def _against_lowrank(name: str, A: torch.Tensor, k: int = 16) -> tuple[list[str], float, str]:
    """A row, the ratio, and both errors: `torch.svd_lowrank` iterates until its error is no more than ours."""
    S = torch.linalg.svdvals(A)
    wanted = _excess(truncated_svd(A, k).error, S)
    for niter in range(1, 21):
        torch.manual_seed(0)
        U, s, V = torch.svd_lowrank(A, q=k + 8, niter=niter)
        rest = torch.linalg.matrix_norm(A - (U * s.unsqueeze(-2))[..., :k] @ V[..., :k].mT).double()
        theirs = _excess(rest / torch.linalg.matrix_norm(A).double(), S)
        if theirs <= wanted:
            break
    a, b = alternate(lambda: truncated_svd(A, k), lambda: torch.svd_lowrank(A, q=k + 8, niter=niter), times=TIMES)
    told = f"{name} {b / a:.2f}x ({100 * wanted:.3f}% above optimal, theirs {100 * theirs:.3f}%, {niter} iterations)"
    return _row(f"truncated SVD, {name}", a, f"torch.svd_lowrank, {niter} iterations", b), b / a, told


def eva_start() -> Measured:
    """MiniLM, movie snippets, rank 16: ours on all batches against PEFT's until its vectors settle."""
    from peft import EvaConfig as PeftEva
    from peft import initialize_lora_eva_weights

    tokenizer, texts, r = load_tokenizer("minilm"), sentiment("movies").split().train.head(SNIPPETS).texts, 16
    task = TextTask(kind="classification", tokenizer=tokenizer, max_length=64)
    ids = tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    batches = [task.collate([{"input_ids": x, "label": 0} for x in ids[i : i + 32]]) for i in range(0, len(ids), 32)]
    for batch in batches:
        batch.pop("labels")
    model = load("minilm", task="classification")
    names = target_modules(model)
    results: dict = {}

    def ours() -> None:
        config = EvaConfig(r=r, tau=1.0, max_batches=len(batches))
        spectra = activation_spectra(model, batches, config, layers=names)
        results["ours"] = spectra, redistribute(spectra, names, r, 2.0)

    def peft() -> None:
        config = LoraConfig(
            r=r, init_lora_weights="eva", eva_config=PeftEva(rho=2.0), target_modules=names, task_type="SEQ_CLS"
        )
        wrapped = get_peft_model(load("minilm", task="classification"), config, low_cpu_mem_usage=True)
        initialize_lora_eva_weights(wrapped, batches, show_progress_bar=False)
        results["peft"] = {
            n.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): p.detach()
            for n, p in wrapped.named_parameters()
            if "lora_A" in n
        }

    a, b = alternate(ours, peft, times=1)
    spectra, ranks = results["ours"]
    moved = sum(abs(ranks[n] - len(results["peft"].get(n, ()))) for n in names) // 2
    shared = _captured(spectra, results["peft"])
    return [_row("EVA start", a, "peft EVA", b)], [
        Claim(
            text="EVA start at least 3x faster than PEFT's, at most 2% of the ranks elsewhere, subspaces of 99% of the "
            "variance",
            held=b / a >= 3 and moved <= 0.02 * sum(ranks.values()) and shared >= 0.99,
            found=f"{b / a:.1f}x; {moved} of {sum(ranks.values())} ranks placed elsewhere; PEFT's subspaces hold "
            f"{100 * shared:.2f}% of the variance that the exact ones hold",
        )
    ]


def _captured(spectra: ActivationSpectra, theirs: dict[str, torch.Tensor]) -> float:
    """Smallest share, over layers, of the variance in our leading subspace that theirs of the same rank holds."""
    shares = []
    for name, V in theirs.items():
        stream = spectra.stream(name)
        S, _ = stream.components(len(V))
        shares.append(stream.captured(torch.linalg.qr(V.double().mT).Q.mT) / float(S.square().sum()))
    return min(shares)


def step() -> Measured:
    """Forward and backward of MiniLM with S2-LoRA against PEFT's LoRA of equal rank, 16 texts of 32 tokens."""

    def adapted(config):
        model = get_peft_model(load("minilm", task="classification", dropout=0.0), config).train()
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    names = target_modules(load("minilm", task="classification"))
    batch = {"input_ids": torch.randint(1000, 20_000, (16, 32)), "labels": torch.arange(16) % 2}
    pair = [
        adapted(S2LoraConfig(r=16, target_modules=names, task_type="SEQ_CLS")),
        adapted(LoraConfig(r=16, lora_alpha=16, target_modules=names, task_type="SEQ_CLS")),
    ]

    def trained(which: int) -> Callable[[], None]:
        model, optimizer = pair[which]

        def one() -> None:
            for _ in range(2):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return one

    for which in (0, 1):
        trained(which)()  # warm
    a, b = alternate(trained(0), trained(1), times=TIMES)
    return [_row("two S2-LoRA steps", a, "peft LoRA, equal rank", b)], [
        Claim(
            text="S2-LoRA's training step at most 1.05x plain LoRA's of equal rank",
            held=a / b <= 1.05,
            found=f"{a / b:.2f}x",
        )
    ]


def speech_training() -> Measured:
    """Whisper tiny.en with LoRA on child-like speech: ours against a plain `Trainer` whose encoder reads all 30 s.

    Both train the same adapters on the same recordings in the same order, in float32; what is not computed is every
    second position of the silence after the speech, its convolution, and a cache that training does not read.
    """
    task = SpeechTask.of("whisper-tiny.en")
    examples = task.encode(speech("child").split().train.head(RECORDINGS))
    settings, rate = Training(steps=2, batch_size=TRAINED, max_length=1), 1e-3
    losses: dict[str, float] = {}

    def adapted(stride: int | None):
        torch.manual_seed(0)
        model = load("whisper-tiny.en")
        if stride is not None:
            shorten(model, stride=stride)
        return get_peft_model(model, LoraConfig(r=5, lora_alpha=5, target_modules=target_modules(model)))

    def ours() -> None:
        result = TrialResult(method="lora", learning_rate=rate, seed=0)
        with TemporaryDirectory() as scratch:
            train(
                adapted(2),
                examples,
                training=settings,
                learning_rate=rate,
                seed=0,
                task=task,
                folder=Path(scratch),
                result=result,
            )
        losses["ours"] = sum(loss for _, loss in result.loss_curve)

    def plain() -> None:
        with TemporaryDirectory() as scratch:
            trainer = Trainer(
                model=adapted(None),
                args=TrainingArguments(
                    output_dir=scratch,
                    per_device_train_batch_size=TRAINED,
                    max_steps=settings.steps,
                    learning_rate=rate,
                    warmup_steps=1,
                    logging_steps=1,
                    save_strategy="no",
                    remove_unused_columns=False,
                    use_cpu=not torch.cuda.is_available(),
                    dataloader_pin_memory=False,
                    disable_tqdm=True,
                    report_to=[],
                    train_sampling_strategy="sequential",
                ),
                train_dataset=dataset(ordered(examples, task=task, steps=settings.steps, batch_size=TRAINED, seed=0)),
                data_collator=task.collate,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            losses["plain"] = sum(e["loss"] for e in trainer.state.log_history if "loss" in e)

    a, b = alternate(ours, plain, times=2)
    gap = abs(losses["ours"] / losses["plain"] - 1)
    n = settings.steps * settings.batch_size
    return [["speech training", f"{n / a:.2f}/s", "plain Trainer, 30 s", f"{n / b:.2f}/s", f"{b / a:.1f}x"]], [
        Claim(
            text="recordings a second at least 1.5x a plain Trainer's with 30-s padding, losses equal within 2%",
            held=b / a >= 1.5 and gap <= 0.02,
            found=f"{b / a:.1f}x; losses {losses['ours']:.4f} and {losses['plain']:.4f} ({100 * gap:.2f}% apart)",
        )
    ]
