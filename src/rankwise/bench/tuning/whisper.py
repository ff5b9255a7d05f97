"""Two proofs about the bundled Whisper, on ten held-out recordings: it is the model, and short audio as good as whole.

The converted weights must give what the CTranslate2 runtime gives from the original file: log-probabilities token by
token, and the same transcripts, on the same features. (faster-whisper is not compared: it fills the features after the
speech with zeros, not with silence as Whisper was trained, and so hears other words.) And the
encoder that computes a part of the silence must stay about as close to the full one as bfloat16 arithmetic does.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankwise.archive import cache_folder
from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.shared.measured import Runs
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
CONVERTED, ROUNDED = "converted model against CTranslate2", "bfloat16 arithmetic, everything computed"
SHORT = "silence, every {}. position"


def measure(out: Path, *, on_event: OnEvent | None = None) -> Runs:
    """Of every recording: how far its tokens' log-probabilities lie apart, which are ranked first alike, what is heard.

    Nothing is random.
    """
    corpus = speech("adult").split().test.head(RECORDINGS)
    task = SpeechTask.of(MODEL)
    examples = task.encode(corpus)
    return conversion(task, examples) | short_audio(task, examples)


def judge(found: Runs) -> Evidence:
    """The converted model against the runtime, and the short encoder against rounding."""
    seen = {what: differences(run) for what, run in found.items()}
    converted, mine, theirs = seen[CONVERTED], found[CONVERTED]["heard"], found[CONVERTED]["heard by the runtime"]
    same = [a == b for a, b in zip(mine, theirs, strict=True)]
    rounding, half = seen[ROUNDED], seen[SHORT.format(2)]
    return Evidence(
        recipe="whisper",
        title="The bundled Whisper tiny.en",
        command="rankwise bench whisper",
        setting=f"{len(mine)} synthetic recordings of adult voices, float32 unless said",
        header=["what", "largest difference of a log-probability", "mean", "tokens ranked first alike"],
        rows=[[what, f"{d.largest:.2g}", f"{d.mean:.2g}", f"{100 * d.alike:.1f}%"] for what, d in seen.items()],
        claims=[
            Claim(
                text="log-probabilities agree with the CTranslate2 runtime to 1e-3, every token ranked first alike",
                held=converted.largest <= 1e-3 and converted.alike == 1,
                found=f"largest difference {converted.largest:.2g} over {converted.tokens} tokens",
            ),
            Claim(
                text=f"greedy transcripts of {len(mine)} recordings are the runtime's, word for word",
                held=all(same),
                found=f"{sum(same)} of {len(same)} equal",
            ),
            Claim(
                text="encoding every second silent position moves log-probabilities as bfloat16 does (mean within "
                "1.25x)",
                held=half.mean <= 1.25 * rounding.mean,
                found=f"mean {half.mean:.2g} against {rounding.mean:.2g}, largest {half.largest:.2g} against "
                f"{rounding.largest:.2g}",
            ),
        ],
        environment=environment("fp32", 1),
    )


class Difference(NamedTuple):
    """Largest and mean gap between log-probabilities, share of tokens ranked first alike, and tokens compared."""

    largest: float
    mean: float
    alike: float
    tokens: int


def differences(run: Runs) -> Difference:
    """Of all recordings together."""
    gaps, alike = (np.concatenate(run[name]) for name in ("gaps", "alike"))
    return Difference(float(gaps.max()), float(gaps.mean()), float(alike.mean()), len(gaps))


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


def apart(a: list[Tensor], b: list[Tensor], labels: list[list[int]]) -> Runs:
    """Of each recording: gaps between the transcript tokens' log-probabilities, and which tokens are ranked alike."""
    found: Runs = {"gaps": [], "alike": []}
    for x, y, wanted in zip(a, b, labels, strict=True):
        at = torch.tensor(wanted)[:, None]
        found["gaps"].append((x[: len(at)].gather(1, at) - y[: len(at)].gather(1, at)).abs().flatten().tolist())
        found["alike"].append((x.argmax(-1) == y.argmax(-1)).int().tolist())
    return found


def conversion(task: SpeechTask, examples: list[Example]) -> Runs:
    """The runtime's greedy transcripts, and its log-probabilities of their tokens, against the converted model's."""
    model, runtime = load(MODEL).eval(), ctranslate2_model()
    theirs, mine, labels, heard_there = [], [], [], []
    for example in examples:
        heard, _ = runtime_tokens(runtime, task, example)
        heard_there.append(task.processor.tokenizer.decode(heard, skip_special_tokens=True).strip())
        # suppressed tokens have no probability in the runtime's logits: compare where none is suppressed
        heard, reference = runtime_tokens(runtime, task, example, suppress_tokens=[], suppress_blank=False)
        (ours,) = token_log_probabilities(model, task, [{**example, "tokens": heard}])
        theirs.append(reference)
        mine.append(ours[: len(reference)])
        labels.append(heard)
    heard_here = task.transcribe(model, examples)
    return {CONVERTED: apart(theirs, mine, labels) | {"heard": heard_here, "heard by the runtime": heard_there}}


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


def short_audio(task: SpeechTask, examples: list[Example]) -> Runs:
    """The encoder that computes every second or fourth silent position, against the full one."""
    model, labels = load(MODEL).eval(), [[*e["tokens"], task.processor.tokenizer.eos_token_id] for e in examples]
    full = token_log_probabilities(model, task, examples)
    found = {ROUNDED: token_log_probabilities(model, task, examples, bf16=True)}
    for stride in (1, 2, 4):
        shorten(model, stride=stride)
        found[SHORT.format(stride)] = token_log_probabilities(model, task, examples)
    return {what: apart(full, other, labels) for what, other in found.items()}
