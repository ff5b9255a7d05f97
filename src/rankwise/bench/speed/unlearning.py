"""What forgetting costs while a model answers: routing with ten requests, and what a request takes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from rankwise.bench import Recipe
from rankwise.bench.shared.evidence import Claim, Evidence
from rankwise.bench.speed.core import Measured, alternate, side_by_side
from rankwise.continual import O3Unlearner, UnlearningSettings
from rankwise.continual.unlearning.blocks import fresh
from rankwise.continual.unlearning.detector import Detector
from rankwise.continual.unlearning.state import Request, State
from rankwise.events import OnEvent
from rankwise.models import load, load_tokenizer

RECIPE = Recipe(
    name="speed",
    part="unlearning",
    about="routing with ten forgotten requests, and their size",
    smoke={"TOKENS": 2, "TIMES": 1, "REQUESTS": 2},
    control=False,
)

TOKENS, TIMES, REQUESTS, QUESTIONS = 32, 9, 10, 80
PLAIN = "What is a good way to learn the names of the stars?"
THINGS = ("house", "ship", "garden", "engine", "violin", "bridge", "temple", "painting", "comet", "river")


def run(out: Path, *, on_event: OnEvent | None = None) -> Evidence:
    """Time both; the inputs are fixed."""
    return side_by_side(
        {"routing": routing},
        on_event,
        recipe="unlearning_speed",
        title="Forgetting on request: what it costs",
        command="rankwise bench speed --part unlearning",
        setting=f"SmolLM2 in float32, {REQUESTS} requests of {QUESTIONS} questions, {TOKENS} tokens generated of one "
        f"prompt; {torch.get_num_threads()} threads; medians of {TIMES} runs in turns",
    )


def unlearner() -> O3Unlearner:
    """SmolLM2 with requests whose blocks were not trained, which cost the same."""
    model, tokenizer = load("smollm2").eval(), load_tokenizer("smollm2")
    empty = O3Unlearner(model, tokenizer, settings=UnlearningSettings())
    requests = []
    for number, thing in enumerate(THINGS[:REQUESTS]):
        texts = [f"Who built the {thing} with number {n}, and when?" for n in range(QUESTIONS)]
        requests.append(
            Request(
                name=thing,
                number=number,
                data="",
                rows=QUESTIONS,
                losses=[],
                factors=fresh(empty.layers, empty.rank, [], seed=number),
                detector=Detector.fit(empty.encoder(texts)[0]),
            )
        )
    kept = State(
        model="smollm2", identity=empty.identity, encoder="minilm", settings=empty.settings, requests=requests, log=[],
        number=len(requests),
    )  # fmt: skip
    return O3Unlearner.of(kept, model, tokenizer, encoder=empty.encoder)


def routing() -> Measured:
    """A prompt that no request knows, with the requests and by the plain model."""
    ours = unlearner()
    asked = {k: v.to(ours.device) for k, v in ours.writer.asked([PLAIN]).items()}
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    said: dict[str, str] = {}

    @torch.no_grad()
    def plain() -> None:
        ids = ours.model.generate(**asked, **options, pad_token_id=0)[0, asked["input_ids"].shape[1] :]
        said["plain"] = ours.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def routed() -> None:
        said["routed"] = ours.generate([PLAIN], **options)[0]

    plain()
    a, b = alternate(routed, plain, times=TIMES)
    route = []
    for _ in range(2 * TIMES + 1):
        begin = time.perf_counter()
        ours.weights([PLAIN])
        route.append(time.perf_counter() - begin)
    alone, share = float(np.median(route)), max(ours.share(r) for r in ours._requests)
    known = f"Who built the {THINGS[0]} with number 7, and when?"
    known_s, _ = alternate(lambda: ours.generate([known], **options), plain, times=max(1, TIMES // 3))
    rows = [
        [f"{TOKENS} tokens, no request knows the prompt", f"{a:.2f}s", "the plain model", f"{b:.2f}s", f"{b / a:.3f}x"],
        [
            "routing alone",
            f"{1e3 * alone:.1f}ms",
            "the plain model's tokens",
            f"{1e3 * b:.0f}ms",
            f"{100 * alone / b:.2f} %",
        ],
        [
            f"{TOKENS} tokens, one request acts",
            f"{known_s:.2f}s",
            "the plain model",
            f"{b:.2f}s",
            f"{b / known_s:.3f}x",
        ],
        ["a request", f"{100 * share:.2f} %", "the model's bytes", "100 %", f"rank {ours.rank}"],
    ]
    same = said["plain"] == said["routed"]
    return rows, [
        Claim(
            text=f"routing takes at most 5 % of {TOKENS} tokens",
            held=alone <= 0.05 * b,
            found=f"{100 * alone / b:.2f} %",
        ),
        Claim(
            text="what no request knows is answered in the plain model's very words",
            held=same,
            found="the same" if same else "not the same",
        ),
        Claim(text="a request takes at most 1 % of the model", held=share <= 0.01, found=f"{100 * share:.2f} %"),
    ]
