"""The entry points that are attacked: what each reads, which of its files are damaged, and how it is called."""

import json
import os
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attack import children
from attack.mutations import damaged_answer


@dataclass(frozen=True, kw_only=True)
class Case:
    """One entry point: the folder it reads, which files are damaged, and the call, made inside that folder."""

    folder: str
    files: tuple[str, ...]
    call: Callable[[], object]
    weight: int = 10


def command(*args: object) -> Callable[[], object]:
    """A command line, made when it is called."""
    return lambda: children.rankwise(*args)()


MODEL = ("model/config.json",) * 4 + ("model/*",)


def _load(task: str) -> Callable[[], object]:
    def call() -> object:
        from rankwise.models import load, load_tokenizer

        return load("model", task=task), load_tokenizer("model")

    return call


def _texts(name: str) -> Callable[[], object]:
    def call() -> object:
        from rankwise import data

        return data.load(name, task="classification")

    return call


def _speech() -> object:
    from rankwise.data.audio import read_manifest

    return read_manifest(Path("speech"))


def _whisper() -> object:
    from rankwise.models.ctranslate2 import whisper_model

    return whisper_model(Path("whisper"))


def _gguf() -> object:
    os.environ["RANKWISE_CACHE"] = "cache"
    from rankwise.models.loading import _dequantised

    return _dequantised(Path("gguf"), "model.gguf")


def _learned() -> object:
    from rankwise.continual import Classifier, CodyraLearner
    from rankwise.models import load

    learner = CodyraLearner(load("model", task="base"), objective=Classifier())
    learner.resume("out/tasks")
    learner.forget("t0")
    return learner.drift()


def _peer() -> object:
    """A node from its folder that answers one search and leaves."""
    import asyncio

    from rankwise.data.items import read_items
    from rankwise.ranking import PeerNode

    async def once() -> object:
        async with PeerNode("state", read_items("items.csv"), host="127.0.0.1", port=0) as node:
            node.community.click("water", node.community.search("water")[0].item)

    return asyncio.run(once())


def _server() -> object:
    """A server whose answers are damaged by the seed in a file, for a question with choices or without."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seed = Path("seed").read_bytes()
    rng, n = random.Random(seed), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = json.dumps(_reply(asked)).encode()
            n[0] += 1
            if seed != b"0" and (n[0] == 1 or rng.random() < 0.5):
                reply = damaged_answer(reply, rng)
            self.send_response(rng.choice([200] * 9 + [500, 418]) if seed != b"0" else 200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    asked = ["answer", "--model", "m", "--server", url, "--question", "a good film ?"]
    choices = ["--choices", "yes", "--choices", "no"] if Path("choices").exists() else []
    return children.rankwise(*asked, "--style", "text", *choices)()


def _reply(asked: dict) -> dict:
    """What an honest server says: the text read back with a log-probability a word, or a few words."""
    words = re.findall(r"\s*\S+|\s+$", asked.get("prompt") or "")
    starts = [sum(map(len, words[:i])) for i in range(len(words))]
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    if asked.get("echo"):
        known = {"tokens": [*words, " x"], "text_offset": [*starts, len("".join(words))]}
        known |= {
            "token_logprobs": [None, *([-1.0] * len(words))],
            "top_logprobs": [None, *([{"x": -1.0}] * len(words))],
        }
        return {
            "choices": [{"text": "".join(words) + " x", "logprobs": known, "finish_reason": "length"}],
            "usage": usage,
        }
    said = {"tokens": ["yes", " it"], "token_logprobs": [-0.1, -0.2], "top_logprobs": [{"yes": -0.1}, {" it": -0.2}]}
    content = [{"token": t, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": -0.1}]} for t in said["tokens"]]
    message = {"role": "assistant", "content": "yes it"}
    choice = {"text": "yes it", "message": message, "logprobs": {**said, "text_offset": [0, 3], "content": content}}
    return {"choices": [{**choice, "index": 0, "finish_reason": "stop"}] * asked.get("n", 1), "usage": usage}


def _spectra() -> object:
    from rankwise.models.activations import ActivationSpectra

    return ActivationSpectra.load(Path("spectra"))


def _selector() -> object:
    from rankwise.prompting.dq_lore import DQLoReSelector

    return DQLoReSelector.load(Path("selector")).select("a good film")


def _manifold() -> object:
    import numpy as np

    from rankwise.distributions.singular.estimator import SingularGenerativeEstimator

    return SingularGenerativeEstimator.load(Path("manifold.safetensors")).score_samples(np.zeros((2, 2)))


ASK = ("--question", "a good film ?", "--choices", "yes", "--choices", "no", "--style", "text")
RANKED = ("--hidden", "3", "--steps", "3", "--resamples", "5")
STREAM = ("continual", "adapt", "--images", "photos", "--model", "vit", "--batch-size", "4", "--out", "out.csv")
SHORT = ("--ratios", "0,0.5", "--tokens", "64", "--continued", "2", "--limit", "2")
FORGET = (
    "continual", "forget", "--model", "model", "--encoder", "encoder", "--style", "text", "--steps", "3", "--data",
)  # fmt: skip
CASES = {
    "merge": Case(
        folder="merge",
        weight=22,
        call=command("merge", "merge.yaml", "--out", "merged"),
        files=("merge.yaml",) * 6 + ("one/config.json", "one/model.safetensors", "one/*", "base/*"),
    ),
    "merge dry": Case(
        folder="merge", weight=10, files=("merge.yaml",), call=command("merge", "merge.yaml", "--dry-run", "--json")
    ),
    "merge again": Case(
        folder="merged",
        weight=10,
        call=command("merge", "merge.yaml", "--out", "merged"),
        files=("merged/.rankwise.json", "merged/*"),
    ),
    "merge goes on": Case(
        folder="merge draft",
        weight=10,
        call=command("merge", "merge.yaml", "--out", "merged"),
        files=(".merged.rankwise-draft/*",),
    ),
    "load decoder": Case(folder="llama", weight=20, files=MODEL, call=_load("causal-lm")),
    "load classifier": Case(folder="bert", weight=20, files=MODEL, call=_load("classification")),
    "inspect": Case(folder="llama", files=MODEL, call=command("inspect", "model")),
    "answer": Case(folder="llama", files=MODEL, call=command("answer", "--model", "model", *ASK)),
    "compress": Case(
        folder="compress",
        files=(*MODEL, "texts.jsonl"),
        call=command("compress", "--model", "model", "--data", "texts.jsonl", "--ratio", "0.5", "--out", "small"),
    ),
    "compressed": Case(folder="compressed", files=MODEL, call=command("inspect", "model")),
    "dense": Case(folder="compressed", files=MODEL, call=command("export", "model", "--to", "dense", "--out", "dense")),
    "export s2lora": Case(
        folder="s2lora",
        files=("adapter/adapter_config.json",) * 3 + ("adapter/*", "model/*"),
        call=command("export", "adapter", "--model", "model", "--out", "out"),
    ),
    "export lora": Case(
        folder="lora",
        files=("adapter/adapter_config.json",) * 3 + ("adapter/*",),
        call=command("export", "adapter", "--to", "merged", "--out", "out"),
    ),
    "predict": Case(
        folder="run",
        files=("run/config.yaml", "run/config.yaml", "run/*", "run/adapters/lora/*", "texts.csv"),
        call=command("predict", "run", "--adapter", "lora", "--text", "a good film"),
    ),
    "adapt": Case(
        folder="adapt", weight=8, files=("run.yaml",) * 5 + ("texts.csv", "model/*"), call=command("adapt", "run.yaml")
    ),
    "adapt goes on": Case(
        folder="run", weight=4, files=("run/.rankwise.json", "run/*", "run/**/*"), call=command("adapt", "run.yaml")
    ),
    "texts csv": Case(folder="texts", weight=16, files=("texts.csv",), call=_texts("texts.csv")),
    "texts tsv": Case(folder="texts", files=("texts.tsv",), call=_texts("texts.tsv")),
    "texts jsonl": Case(folder="texts", weight=16, files=("texts.jsonl",), call=_texts("texts.jsonl")),
    "texts parquet": Case(folder="texts", weight=16, files=("texts.parquet",), call=_texts("texts.parquet")),
    "recordings": Case(folder="speech", weight=16, files=("speech/*",), call=_speech),
    "ctranslate2": Case(
        folder="ctranslate2", weight=30, files=("whisper/model.bin",) * 4 + ("whisper/*",), call=_whisper
    ),
    "gguf": Case(folder="gguf", weight=20, files=("gguf/model.gguf",), call=_gguf),
    "record": Case(
        folder="record",
        files=("answers.jsonl.record",),
        call=command("answer", "--model", "model", *ASK, "--out", "answers.jsonl"),
    ),
    "questions": Case(
        folder="record",
        files=("questions.jsonl",),
        call=command("answer", "--model", "model", "--questions", "questions.jsonl", "--style", "text"),
    ),
    "server": Case(folder="server", weight=20, files=("seed",), call=_server),
    "server sampled": Case(folder="server sampled", weight=12, files=("seed",), call=_server),
    "select": Case(
        folder="select",
        files=("pool.jsonl", "queries.jsonl", "prompts.jsonl.record"),
        call=command(
            "select",
            "--pool",
            "pool.jsonl",
            "--queries",
            "queries.jsonl",
            "--selector",
            "bm25",
            "-k",
            "2",
            "--model",
            "model",
            "--out",
            "prompts.jsonl",
        ),
    ),
    "compare": Case(
        folder="compare",
        weight=6,
        files=("a.txt", "b.txt"),
        call=command("compare", "a.txt", "b.txt", "--model", "model"),
    ),
    "perseval": Case(
        folder="summaries",
        weight=12,
        files=("news.jsonl", "news.jsonl", "page/.rankwise.json"),
        call=command("perseval", "news.jsonl", "--resamples", "20", "--out", "page"),
    ),
    "perseval table": Case(
        folder="summaries", files=("news.csv",), call=command("perseval", "news.csv", "--simplified", "--json")
    ),
    "peer": Case(
        folder="node",
        weight=16,
        files=("items.csv", "items.csv", "state/log.sqlite", "state/log.sqlite", "state/key.bin", "state/*.json"),
        call=_peer,
    ),
    "rank fit": Case(
        folder="clicks",
        weight=16,
        files=("clicks.csv", "docs.svm", "ranker/.rankwise.json"),
        call=command("rank", "fit", "clicks.csv", "--features", "docs.svm", *RANKED, "--out", "ranker"),
    ),
    "rank fit columns": Case(
        folder="clicks",
        files=("clicks.jsonl",),
        call=command("rank", "fit", "clicks.jsonl", *RANKED, "--out", "other", "--json"),
    ),
    "rank fit ultra": Case(
        folder="clicks",
        files=("ultra/settings.json", "ultra/train/*"),
        call=command("rank", "fit", "clicks.csv", "--features", "ultra", *RANKED, "--out", "other"),
    ),
    "rank score": Case(
        folder="clicks",
        weight=16,
        files=("ranker/ranker.json", "ranker/ranker.json", "ranker/ranker.safetensors", "docs.svm"),
        call=command("rank", "score", "ranker", "docs.svm", "--json"),
    ),
    "rank evaluate": Case(
        folder="clicks",
        files=("scores.csv", "qrels.txt"),
        call=command("rank", "evaluate", "scores.csv", "qrels.txt", "--resamples", "5"),
    ),
    "rank evaluate table": Case(
        folder="clicks",
        weight=6,
        files=("qrels.jsonl",),
        call=command("rank", "evaluate", "scores.csv", "qrels.jsonl", "--resamples", "5", "--json"),
    ),
    "quantile predict": Case(
        folder="quantiles",
        weight=24,
        files=("fitted/**/*", "new.csv"),
        call=command("quantile", "predict", "fitted", "new.csv", "--json"),
    ),
    "quantile predict parquet": Case(
        folder="quantiles", files=("new.parquet",), call=command("quantile", "predict", "fitted", "new.parquet")
    ),
    "quantile report": Case(
        folder="quantiles", weight=6, files=("fitted/**/*",), call=command("quantile", "report", "fitted")
    ),
    "quantile fit": Case(
        folder="quantiles",
        weight=12,
        files=("data.csv", "data.csv", "fitted/.rankwise.json"),
        call=command("quantile", "fit", "data.csv", "--response", "price", "--models", "linear", "--out", "fitted"),
    ),
    "quantile fit jsonl": Case(
        folder="quantiles",
        weight=8,
        files=("data.jsonl",),
        call=command("quantile", "fit", "data.jsonl", "--response", "price", "--models", "linear", "--out", "other"),
    ),
    "quantile fit goes on": Case(
        folder="quantiles cut",
        weight=6,
        files=(".*/*", ".*/**/*"),
        call=command(
            "quantile", "fit", "data.csv", "--response", "price", "--models", "linear,boosting", "--out", "fitted"
        ),
    ),
    "adapt from a checkpoint": Case(
        folder="adapt cut", weight=5, files=("run/**/*", "run/trials/**/*"), call=command("adapt", "run.yaml")
    ),
    "tokens": Case(
        folder="pictures",
        weight=16,
        files=("photos/*",) * 6 + ("photos/kept/.rankwise.json", "vit/config.json", "vit/*"),
        call=command("tokens", "photos", "--model", "vit", "--out", "photos/kept"),
    ),
    "tokens of one": Case(
        folder="pictures",
        files=("photos/a.png",),
        call=command("tokens", "photos/a.png", "--model", "vit", "--out", "o"),
    ),
    "stream": Case(
        folder="pictures",
        files=("photos/*",) * 4 + ("vit/config.json", "vit/*"),
        call=command(*STREAM, "--method", "tent"),
    ),
    "stream goes on": Case(
        folder="streamed",
        weight=14,
        files=("learned/state.json",) * 3 + ("learned/*",) * 3 + ("vit/*",),
        call=command(*STREAM, "--state", "learned"),
    ),
    "pretrain": Case(
        folder="cifar",
        weight=8,
        files=("cifar10/*/*",),
        call=command(
            "pretrain", "vit-cifar10", "--data", "cifar10", "--epochs", "1", "--batch-size", "64", "--out", "vit"
        ),
    ),
    "pretrain goes on": Case(
        folder="cifar cut",
        weight=5,
        files=(".vit.rankwise-draft/*", ".vit.rankwise-draft/checkpoints/**/*"),
        call=command(
            "pretrain", "vit-cifar10", "--data", "cifar10", "--epochs", "2", "--batch-size", "32", "--out", "vit"
        ),
    ),
    "cache": Case(
        folder="long texts",
        weight=14,
        files=("long.jsonl",) * 4 + (*MODEL, "out/.rankwise.json"),
        call=command("cache", "--model", "model", "--texts", "long.jsonl", *SHORT, "--out", "out"),
    ),
    "learn": Case(
        folder="tasks",
        weight=16,
        files=("tasks.yaml",) * 4 + ("0.csv", *MODEL, "out/.rankwise.json"),
        call=command("continual", "learn", "tasks.yaml", "--out", "out"),
    ),
    "learned tasks": Case(folder="tasks", weight=8, files=("out/tasks/*", "out/tasks/tasks.json"), call=_learned),
    "cache csv": Case(
        folder="long texts",
        files=("long.csv",),
        call=command("cache", "--model", "model", "--texts", "long.csv", *SHORT, "--json"),
    ),
    "forget": Case(
        folder="forgetful",
        weight=14,
        files=("second.jsonl",) * 5 + ("model/config.json", "encoder/*", "state/*", "state/*/*"),
        call=command(*FORGET, "second.jsonl", "--name", "two", "--out", "state"),
    ),
    "forget a table": Case(
        folder="forgetful", files=("second.csv",), call=command(*FORGET, "second.csv", "--name", "two", "--out", "new")
    ),
    "relearn": Case(
        folder="forgetful",
        weight=12,
        files=("state/*", "state/*", "state/*/*", "state/.rankwise.json"),
        call=command("continual", "relearn", "state", "--name", "one"),
    ),
    "ask": Case(
        folder="forgetful",
        weight=16,
        files=("state/*",) * 3 + ("state/*/*",) * 3 + ("second.jsonl",),
        call=command("continual", "ask", "state", "--data", "second.jsonl", "--max-new-tokens", "2"),
    ),
    "spectra": Case(folder="kept", weight=8, files=("spectra/*",), call=_spectra),
    "selector": Case(folder="kept", weight=8, files=("selector/*", "selector/encoder/config.json"), call=_selector),
    "manifold": Case(folder="kept", weight=8, files=("manifold.safetensors",), call=_manifold),
}
