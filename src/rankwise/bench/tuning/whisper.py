"""Two proofs about the bundled Whisper, on ten held-out recordings: it is the model, and short audio as good as whole.

The converted weights must give what the CTranslate2 runtime gives from the original file: log-probabilities token by
token, and the same transcripts, on the same features. (faster-whisper is not compared: it fills the features after the
speech with zeros, not with silence as Whisper was trained, and so hears other words.) And the
encoder that computes a part of the silence must stay closer to the full one than bfloat16 arithmetic does.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from rankwise.archive import cache_folder
from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.data import speech
from rankwise.events import OnEvent, environment
from rankwise.jobs.speech import SpeechTask
from rankwise.jobs.tasks import Example
from rankwise.models import load, resolve
from rankwise.models.names import kept_as
from rankwise.models.whisper import shorten

RECIPE = Recipe(
    name="whisper",
    part="speech",
    about="the bundled Whisper against CTranslate2's, and the encoder that skips silence",
    smoke={"RECORDINGS": 2},
    control=False,
)

MODEL, RECORDINGS = "whisper-tiny.en", 10


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Compare; nothing is random."""
    start = time.perf_counter()
    corpus = speech("adult").split().test.head(RECORDINGS)
    task = SpeechTask.of(MODEL)
    examples = task.encode(corpus)
    rows, claims = [], []
    for part in (conversion(task, examples), short_audio(task, examples)):
        rows += part[0]
        claims += part[1]
    return Evidence(
        recipe="whisper",
        title="The bundled Whisper tiny.en",
        command="rankwise bench whisper",
        setting=f"{RECORDINGS} synthetic recordings of adult voices, float32 unless said",
        header=["what", "largest difference of a log-probability", "mean", "tokens ranked first alike"],
        rows=rows,
        claims=claims,
        seconds=time.perf_counter() - start,
        environment=environment("fp32", 1),
    )


def original() -> Path:
    """The CTranslate2 folder as it was published."""
    resolve(MODEL)
    return cache_folder() / "models" / kept_as(MODEL)


@torch.no_grad()
def token_log_probabilities(model, task: SpeechTask, examples: list[Example], *, bf16: bool = False) -> list[Tensor]:
    """Log-probabilities ``(tokens, vocabulary)`` at every transcript token of each recording, teacher-forced."""
    found = []
    for example in examples:
        batch = task.collate([example])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"]).logits
        found.append(logits.float().log_softmax(-1)[0, len(task.prompt) - 1 :])
    return found


def differences(a: list[Tensor], b: list[Tensor], labels: list[list[int]]) -> tuple[float, float, float]:
    """Largest and mean difference of the transcript tokens' log-probabilities, and the share ranked first alike."""
    gaps, alike = [], []
    for x, y, wanted in zip(a, b, labels, strict=True):
        at = torch.tensor(wanted)[:, None]
        gaps.append((x[: len(at)].gather(1, at) - y[: len(at)].gather(1, at)).abs().flatten())
        alike.append((x.argmax(-1) == y.argmax(-1)).float())
    gap = torch.cat(gaps)
    return float(gap.max()), float(gap.mean()), float(torch.cat(alike).mean())


def _row(what: str, found: tuple[float, float, float]) -> list[str]:
    return [what, f"{found[0]:.2g}", f"{found[1]:.2g}", f"{100 * found[2]:.1f}%"]


def conversion(task: SpeechTask, examples: list[Example]) -> tuple[list[list[str]], list[Claim]]:
    """The runtime's greedy transcripts, and its log-probabilities of their tokens, against the converted model's."""
    model, runtime = load(MODEL).eval(), ctranslate2_model()
    gaps, alike, theirs = [], [], []
    for example in examples:
        heard, _ = runtime_tokens(runtime, task, example)
        theirs.append(task.processor.tokenizer.decode(heard, skip_special_tokens=True).strip())
        # suppressed tokens have no probability in the runtime's logits: compare where none is suppressed
        heard, reference = runtime_tokens(runtime, task, example, suppress_tokens=[], suppress_blank=False)
        (ours,) = token_log_probabilities(model, task, [{**example, "tokens": heard}])
        at = torch.tensor(heard)[:, None]
        gaps.append((reference.gather(1, at) - ours[: len(at)].gather(1, at)).abs().flatten())
        alike.append((reference.argmax(-1) == ours[: len(at)].argmax(-1)).float())
    gap, mine = torch.cat(gaps), task.transcribe(model, examples)
    found = float(gap.max()), float(gap.mean()), float(torch.cat(alike).mean())
    same = [a == b for a, b in zip(mine, theirs, strict=True)]
    return [_row("converted model against CTranslate2", found)], [
        Claim(
            text="log-probabilities agree with the CTranslate2 runtime to 1e-3, every token ranked first alike",
            held=found[0] <= 1e-3 and found[2] == 1,
            found=f"largest difference {found[0]:.2g} over {len(gap)} tokens",
        ),
        Claim(
            text=f"greedy transcripts of {len(examples)} recordings are the runtime's, word for word",
            held=all(same),
            found=f"{sum(same)} of {len(same)} equal",
        ),
    ]


def ctranslate2_model():
    """The published file in the runtime it was made for, float32."""
    try:
        import ctranslate2
    except ImportError as error:
        raise ImportError("comparing with the runtime needs ctranslate2: pip install ctranslate2") from error
    return ctranslate2.models.Whisper(str(original()), device="cpu", compute_type="float32")


def runtime_tokens(runtime, task: SpeechTask, example: Example, **options) -> tuple[list[int], Tensor]:
    """The runtime's greedy tokens and their log-probabilities ``(tokens, vocabulary)``."""
    import ctranslate2
    import numpy as np

    features = np.ascontiguousarray(task.collate([example])["input_features"].numpy())
    view, prompt = ctranslate2.StorageView.from_array(features), [list(task.prompt)]
    found = runtime.generate(view, prompt, beam_size=1, return_logits_vocab=True, **options)[0]
    heard = found.sequences_ids[0]
    logits = torch.stack([torch.from_numpy(np.array(v)).float().flatten() for v in found.logits[0][: len(heard)]])
    return heard, logits.log_softmax(-1)


def short_audio(task: SpeechTask, examples: list[Example]) -> tuple[list[list[str]], list[Claim]]:
    """The encoder that computes every second or fourth silent position, against the full one."""
    model, labels = load(MODEL).eval(), [[*e["tokens"], task.processor.tokenizer.eos_token_id] for e in examples]
    full = token_log_probabilities(model, task, examples)
    found = {"bfloat16 arithmetic, everything computed": token_log_probabilities(model, task, examples, bf16=True)}
    for stride in (1, 2, 4):
        shorten(model, stride=stride)
        found[f"silence, every {stride}. position"] = token_log_probabilities(model, task, examples)
    seen = {what: differences(x, full, labels) for what, x in found.items()}
    rounding, half = (list(seen.values())[i] for i in (0, 2))
    return [_row(what, d) for what, d in seen.items()], [
        Claim(
            text="encoding every second silent position moves log-probabilities as bfloat16 does (mean within 1.25x)",
            held=half[1] <= 1.25 * rounding[1],
            found=f"mean {half[1]:.2g} against {rounding[1]:.2g}, largest {half[0]:.2g} against {rounding[0]:.2g}",
        )
    ]
