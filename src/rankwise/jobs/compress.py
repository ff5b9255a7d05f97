"""The compression job: choose ranks, factorise, measure before and after, write a model that loads by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from rankwise import compression
from rankwise import data as corpora
from rankwise.compression.directions import Progress
from rankwise.compression.plans import Plan
from rankwise.data import Corpus
from rankwise.data.corpus import BUILT_IN
from rankwise.files import whole_folder, write_json, write_text
from rankwise.jobs.early import check_compression
from rankwise.jobs.tasks import Example, TextTask, batches, check_lengths
from rankwise.models import load, load_tokenizer
from rankwise.models.activations import Batch
from rankwise.models.loading import placed
from rankwise.models.names import check_own_files

OnPhase = Callable[[str], None]
_BATCH = 8
_CARD = """# {model}, compressed

Some of the linear layers are two thin ones each, see `compression.json`. Load the folder with
`rankwise.compression.load`, or make a plain model of it: `rankwise export FOLDER --to dense --out DENSE`.
Other loaders stop at the shape of a factorised layer's weight.
"""


@dataclass(kw_only=True)
class Compression:
    """What a compression gave.

    Attributes
    ----------
    plan : Plan
    before, after : dict
        ``perplexity`` on the test texts, ``tokens_per_second`` of a forward pass over them, ``decoded_per_second`` of
        greedy decoding; empty if not measured.
    bytes_on_disk : int
        Of the written weights.
    seconds : float
        Of choosing ranks and factorising.
    dtype : str
        Of the written weights.
    texts : dict of str to dict
        What was ``measured`` and ``calibrated`` on: ``from``, ``rows``, ``used`` and ``how`` the rows were chosen.
    """

    plan: Plan
    before: dict[str, float]
    after: dict[str, float]
    bytes_on_disk: int
    seconds: float
    dtype: str
    texts: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the spectra, for JSON."""
        measured = {"before": self.before, "after": self.after, "bytes_on_disk": self.bytes_on_disk}
        return {**self.plan.as_dict(), **measured, "dtype": self.dtype, "seconds": self.seconds, "texts": self.texts}

    def told(self) -> list[str]:
        """What was measured and calibrated on, a line each."""
        return [
            f"{use} on {t['used']} of {t['rows']} texts in {t['from']} ({t['how']})" for use, t in self.texts.items()
        ]


def compress_model(
    model: str,
    out: Path,
    *,
    data: str | None = "text:nyt",
    calibrate: str | None = None,
    calibrate_limit: int = 128,
    test_limit: int = 40,
    max_length: int = 128,
    seed: int = 0,
    dtype: str | None = None,
    target: str = "auto",
    progress: Progress = lambda names, what: names,
    on_phase: OnPhase = lambda phase: None,
    report: Callable[[Path, Compression], None] = lambda folder, done: None,
    **options: Any,
) -> Compression:
    """Compress a language model and write it with its tokenizer and ``compression.json``.

    Parameters
    ----------
    model : str
        Name, folder or hub id.
    out : Path
        Folder, replaced as a whole when everything is done.
    data : str, optional
        Texts that measure perplexity: all rows of a file, the test part of a bundled corpus, or of what calibrates too;
        ``None`` measures nothing.
    calibrate : str, optional
        Texts that calibrate: all rows of a file, the training part of a bundled corpus, or of what is measured too.
    calibrate_limit, test_limit, max_length : int
        The most calibration texts (drawn by ``seed``), test texts, and tokens of each.
    seed : int
        Decides which calibration texts are drawn. Default 0.
    dtype : {"float32", "bfloat16", "float16"}, optional
        Of the written weights, and of what is measured; that of the checkpoint by default.
    target : str
        Which layers.
    report : callable
        Writes into the folder before it takes its place.
    **options
        A target and a method, as `rankwise.compression.options.check_options` takes them.

    Raises
    ------
    ValueError
        Before anything is loaded: options that say nothing or too much, an output that is not replaced, data without
        texts. Then: no causal language model, and what `rankwise.compression.plan` refuses.
    """
    check_compression(
        model, out, calibrate_limit=calibrate_limit, test_limit=test_limit, max_length=max_length, seed=seed,
        dtype=dtype, **options,
    )  # fmt: skip
    check_own_files(model)
    chosen = _chosen(data, calibrate)
    tokenizer = load_tokenizer(model)
    task = TextTask(kind="causal-lm", tokenizer=tokenizer, max_length=max_length)
    test, drawn, texts = _read(task, chosen, test_limit=test_limit, calibrate_limit=calibrate_limit, seed=seed)
    network = placed(load(model, task="causal-lm", dtype=None if dtype is None else getattr(torch, dtype)).eval())
    check_lengths(task, network, [*test, *drawn])
    loader = inputs(task, drawn) if drawn else None
    start = time.perf_counter()
    plan = compression.plan(
        network, target=target, calibrate=loader, max_batches=len(loader or ()), progress=progress, **options
    )
    seconds = time.perf_counter() - start
    before = _measured_as(network, task, test, "the original", on_phase)
    start = time.perf_counter()
    compression.apply(network, plan, progress=progress)
    seconds += time.perf_counter() - start
    after = _measured_as(network, task, test, "the compressed model", on_phase)
    with whole_folder(out, made_by="compress", inputs=[model]) as draft:
        network.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        write_text(draft / "README.md", _CARD.format(model=model))
        result = Compression(
            plan=plan,
            before=before,
            after=after,
            bytes_on_disk=sum(f.stat().st_size for f in draft.glob("*.safetensors")),
            seconds=seconds,
            dtype=str(network.dtype).removeprefix("torch."),
            texts=texts,
        )
        write_json(draft / "compression.json", result.as_dict())
        report(draft, result)
    return result


def _read(
    task: TextTask, chosen: dict[str, tuple[Corpus, str]], *, test_limit: int, calibrate_limit: int, seed: int
) -> tuple[list[Example], list[Example], dict[str, dict[str, Any]]]:
    """Texts to measure on and to calibrate on, encoded, and what is told of both."""
    found: dict[str, list[Example]] = {"measured": [], "calibrated": []}
    told = {}
    for use, (corpus, how) in chosen.items():
        if use == "measured":
            found[use] = encoded(task, corpus.head(test_limit), "to measure perplexity on")
        else:
            found[use] = encoded(task, sample(corpus, calibrate_limit, seed), "to calibrate on")
        told[use] = {"from": corpus.name, "rows": len(corpus), "used": len(found[use]), "how": how}
    return found["measured"], found["calibrated"], told


def texts_of(spec: str, part: str = "train", *, split: bool = False) -> tuple[Corpus, str]:
    """A language model's texts, and how they were chosen: all rows of a file, else the ``part`` of a fixed split.

    Parameters
    ----------
    spec : str
        A bundled corpus or a file.
    part : {"train", "test"}
        Which part of the split. Default "train".
    split : bool
        The part of a file too.

    Raises
    ------
    ValueError
        No such texts, or none in that part.
    """
    corpus = corpora.load(spec, task="causal-lm")
    if not split and not spec.startswith(BUILT_IN):
        return corpus, "all rows"
    rows: Corpus = getattr(corpus.split(), part)
    if not len(rows):
        raise ValueError(
            f"{spec}: no rows are left for its {part} part: {len(corpus)} are too few to split; give two files"
        )
    return rows, f"the {part} part, by a hash of each row's group"


def _chosen(data: str | None, calibrate: str | None) -> dict[str, tuple[Corpus, str]]:
    """The rows to measure and to calibrate on, apart from each other where both are of the same texts."""
    found = {}
    if data is not None:
        found["measured"] = texts_of(data, "test")
    if calibrate is not None:
        found["calibrated"] = texts_of(calibrate)
    if data is None or calibrate is None:
        return found
    (tested, how), (drawn, _) = found["measured"], found["calibrated"]
    if how == "all rows" and tested.fingerprint() == drawn.fingerprint():
        return {"measured": texts_of(data, "test", split=True), "calibrated": texts_of(calibrate, split=True)}
    seen = {t.casefold() for t in drawn.texts}
    if shared := sum(t.casefold() in seen for t in tested.texts):
        found["measured"] = (tested, f"{how}; {shared} of them also stand among the texts to calibrate on")
    return found


def sample(corpus: Corpus, limit: int, seed: int) -> Corpus:
    """``limit`` rows drawn by ``seed``, in the corpus' order."""
    order = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = set(order[:limit])
    return corpus.where(lambda i: i in drawn)


def inputs(task: TextTask, examples: list[Example]) -> list[Batch]:
    """Batches for calibration: what the model takes, without labels."""
    return [{k: v for k, v in b.items() if k != "labels"} for b in batches(task, examples, _BATCH)]


def encoded(task: TextTask, corpus: Corpus, use: str) -> list[Example]:
    """The texts as tokens; an error where none is left."""
    rows = task.encode(corpus)
    if not rows:
        raise ValueError(f"{corpus.name} has no texts of two tokens or more {use}")
    return rows


def _measured_as(
    model: PreTrainedModel, task: TextTask, test: list[Example], what: str, on_phase: OnPhase
) -> dict[str, float]:
    if not test:
        return {}
    on_phase(f"measuring {what}")
    return measured(model, task, test)


@torch.no_grad()
def measured(model: PreTrainedModel, task: TextTask, test: list) -> dict[str, float]:
    """Perplexity, and tokens a second of a forward pass and of greedy decoding, once warm."""
    ids = torch.tensor([test[0]["input_ids"][:8]], device=model.device)
    decode = partial(  # a decoder has it
        cast(Any, model).generate, ids, do_sample=False, pad_token_id=task.tokenizer.pad_token_id
    )
    task.evaluate(model, test[:1])
    decode(max_new_tokens=2)
    start = time.perf_counter()
    perplexity = task.evaluate(model, test)["perplexity"]
    forward = sum(map(task.length, test)) / (time.perf_counter() - start)
    start = time.perf_counter()
    out = decode(max_new_tokens=24, min_new_tokens=24)
    decoded = (out.shape[1] - ids.shape[1]) / (time.perf_counter() - start)
    return {"perplexity": perplexity, "tokens_per_second": forward, "decoded_per_second": decoded}
