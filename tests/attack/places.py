"""Folders to attack, each made once, in a child, by the commands themselves."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import small_models
from attack import children, folders
from attack.cases import ASK, CASES, FORGET, RANKED, STREAM


def build(root: Path, only: set[str] | None = None) -> dict[str, str]:
    """Every case's folder, made once by the commands themselves; of those that cannot be made, why."""
    failed = {}
    for name, make in BUILDERS.items():
        if only is not None and name not in only:
            continue
        place = root / name
        place.mkdir(parents=True)

        def work(tell, make=make, place=place) -> None:
            os.chdir(place)
            make()

        for ended in children.in_child(work, seconds=300):
            failed[name] = f"{ended['ended']}: {ended['said'][-3000:]}"
    return failed


def _model(kind: str) -> Callable[[], object]:
    return lambda: folders.model(Path("model"), kind)


def _compressed() -> None:
    _compressable()
    folders.command("compress", "--model", "dense", "--data", "texts.jsonl", "--ratio", "0.6", "--out", "model")
    shutil.rmtree("dense")


def _compressable(name: str = "dense") -> None:
    folders.model(Path(name), "llama")
    folders.texts(Path("texts.jsonl"))


def _adapter(kind: str) -> Callable[[], object]:
    return lambda: (folders.model(Path("model"), "bert"), folders.adapter(Path("adapter"), Path("model"), kind))


def _adaptable() -> None:
    folders.model(Path("model"), "bert")
    folders.texts(Path("texts.csv"))
    Path("run.yaml").write_text(
        "model: model\ndata: texts.csv\nmethods: [lora]\nbudget: 0.5k\nseeds: 1\nsteps: 2\nbatch_size: 4\n"
        "max_length: 16\nlearning_rates: {lora: [0.001]}\nout: run\n"
    )


def _run() -> None:
    _adaptable()
    folders.command("adapt", "run.yaml")


def _texts_of_all_kinds() -> None:
    for kind in ("csv", "tsv", "jsonl", "parquet"):
        folders.texts(Path(f"texts.{kind}"))


def _record() -> None:
    folders.model(Path("model"), "llama")
    folders.lines(
        Path("questions.jsonl"),
        [{"question": "a film ?", "choices": ["yes", "no"]}, {"question": "is it", "choices": ["good"]}],
    )
    folders.command("answer", "--model", "model", *ASK, "--out", "answers.jsonl")


def _select() -> None:
    folders.model(Path("model"), "llama")
    folders.lines(Path("pool.jsonl"), [{"question": t, "answer": "yes", "rationale": "it is"} for t in folders.TEXTS])
    folders.lines(Path("queries.jsonl"), [{"question": "a very good film"}, {"question": "not bad"}])
    folders.command(
        "select", "--pool", "pool.jsonl", "--queries", "queries.jsonl", "--selector", "dq-lore", "-k", "2",
        "--candidates", "4", "--rank", "2", "--retriever", "model", "--model", "model", "--out", "prompts.jsonl",
        "--max-new-tokens", "4",
    )  # fmt: skip


def _answering(choices: bool) -> None:
    Path("seed").write_bytes(b"0")
    if choices:
        Path("choices").touch()


def _merged() -> None:
    folders.recipe(Path("."))
    folders.command("merge", "merge.yaml", "--out", "merged")


def _cut_in_the_middle(*args: str, out: str) -> None:
    """What a command leaves that is killed before one of its writes."""
    whole = children.run(args, Path.cwd())
    if whole["ended"] != "success":
        raise RuntimeError(f"no success: {whole}")
    shutil.rmtree(out)
    ending = children.run(args, Path.cwd(), before_write=whole["writes"] // 2)
    if ending["ended"] != "killed":
        raise RuntimeError(f"not killed: {ending}")


def _adapt_cut() -> None:
    """A run that was killed while it trained, with checkpoints."""
    _adaptable()
    text = Path("run.yaml").read_text().replace("steps: 2", "steps: 6") + "checkpoint_steps: 1\n"
    Path("run.yaml").write_text(text)
    _cut_in_the_middle("adapt", "run.yaml", out="run")


FIT = ("quantile", "fit", "data.csv", "--response", "price", "--models", "linear,boosting", "--out", "fitted")


def _quantiles_cut() -> None:
    """A fit that was killed with some of its base models done."""
    folders.table(Path("data.csv"), 120)
    _cut_in_the_middle(*FIT, out="fitted")


def _kept() -> None:
    """What the library's own savers write: spectra of activations, a selector, a density on a manifold."""
    import numpy as np

    from rankwise.distributions.singular.estimator import SingularGenerativeEstimator
    from rankwise.models import activations, load, load_tokenizer
    from rankwise.models.embedding import TextEncoder
    from rankwise.prompting.dq_lore import DQLoReSelector
    from rankwise.prompting.examples import Example

    folders.model(Path("model"), "bert")
    network, tokens = load("model", task="base"), load_tokenizer("model")
    batches = [dict(tokens(folders.TEXTS, return_tensors="pt", padding=True))]
    layers = {n: m for n, m in network.named_modules() if n.endswith("query")}
    activations.gather(network, batches, layers, n_components=2).save(Path("spectra"))
    pool = [Example(question=t, answer="yes") for t in folders.TEXTS]
    DQLoReSelector(None, TextEncoder("model"), k_examples=2, candidates=4, rank=2).fit(pool).save(Path("selector"))
    X = np.random.default_rng(0).normal(size=(60, 2))
    SingularGenerativeEstimator(noise=0.1, epochs=2, hidden=(8,)).fit(X).save(Path("manifold.safetensors"))


def _tables() -> None:
    folders.table(Path("data.csv"), 120)


def _merge_draft() -> None:
    """A merge that was cut short: its draft holds some tensors."""
    from rankwise.merging import merge_checkpoints

    folders.recipe(Path("."))

    def cut(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        merge_checkpoints(Path("merge.yaml"), Path("merged"), progress=cut)


def _quantiles() -> None:
    for name in ("data.csv", "new.csv", "new.parquet", "data.jsonl"):
        folders.table(Path(name), 120 if "data" in name else 6)
    folders.command(
        "quantile", "fit", "data.csv", "--response", "price", "--models", "linear,boosting,forest,gaussian,network",
        "--levels", "0.1,0.5,0.9", "--out", "fitted",
    )  # fmt: skip


def _summaries() -> None:
    texts = {
        "ann": {"user": "a good film", "T5": "good", "S": "film"},
        "bob": {"user": "long and dull", "T5": "good", "S": "dull"},
    }
    news = {"doc_text": "a good film , long and dull", "m_summary_dict": texts}
    folders.lines(Path("news.jsonl"), [{"doc_id": f"N{i}", **news} for i in range(4)])
    rows = [f"N{i},{u},{t['user']},{t['T5']}" for i in range(4) for u, t in texts.items()]
    Path("news.csv").write_text("\n".join(["doc_id,uid,user,T5", *rows, ""]))
    folders.command("perseval", "news.jsonl", "--systems", "T5", "--resamples", "20", "--out", "page")


def _clicks() -> None:
    """A click log with its features beside it, in columns, and in ULTRA's form; grades, scores, and a ranker."""
    docs = [(q, d, (q + d) % 3, q * d % 5, d - q) for q in range(6) for d in range(3)]
    Path("docs.svm").write_text("".join(f"{y} qid:q{q} 1:{a} 2:{b} # d{d}\n" for q, d, y, a, b in docs))
    Path("qrels.txt").write_text("".join(f"q{q} 0 d{d} {y}\n" for q, d, y, *_ in docs))
    folders.lines(Path("qrels.jsonl"), [{"query": f"q{q}", "doc": f"d{d}", "grade": y} for q, d, y, *_ in docs])
    shown = [(s % 6, (s + k) % 3, k + 1, int(s % 4 == k), s) for s in range(48) for k in range(3)]
    Path("clicks.csv").write_text("\n".join(["query,doc,position,click,session",
                                             *(f"q{q},d{d},{k},{c},{s}" for q, d, k, c, s in shown), ""]))  # fmt: skip
    wide = ("query", "doc", "position", "click", "session", "bm25")
    folders.lines(Path("clicks.jsonl"), [dict(zip(wide, (*row, row[0] * row[1] % 5), strict=True)) for row in shown])
    train = Path("ultra/train")
    train.mkdir(parents=True)
    Path("ultra/settings.json").write_text('{"feature_size": 2, "removed_feature_ids": []}')
    (train / "train.feature").write_text("".join(f"d{d} 1:{a} 2:{b}\n" for _, d, _, a, b in docs))
    (train / "train.init_list").write_text("".join(f"q{q} {3 * q} {3 * q + 1} {3 * q + 2}\n" for q in range(6)))
    (train / "train.labels").write_text("".join(f"q{q} 0 1 2\n" for q in range(6)))
    folders.command("rank", "fit", "clicks.csv", "--features", "docs.svm", *RANKED, "--out", "ranker")
    folders.command("rank", "score", "ranker", "docs.svm", "--out", "scores.csv")


def _node() -> None:
    """A peer's folder with its key, its log, and where it met somebody."""
    rows = [f"s{i},Slow Water {i},Ann,blues;live" for i in range(9)]
    Path("items.csv").write_text("\n".join(["id,title,artist,tags", *rows, ""]))
    for _ in range(20):
        CASES["peer"].call()
    Path("state/peers.json").write_text('{"peers": [["127.0.0.1", 9]]}')


def _pictures() -> None:
    """Pictures of several kinds, a vision transformer, and what the command wrote before."""
    folders.pictures(Path("photos"))
    small_models.saved_with_processor(small_models.vit(), Path("vit"))
    folders.command("tokens", "photos", "--model", "vit", "--out", "photos/kept")


def _streamed() -> None:
    _pictures()
    folders.command(*STREAM, "--state", "learned")


def _tasks() -> None:
    """A text encoder, a stream of two tasks, and what the command wrote before."""
    folders.model(Path("model"), "bert")
    for k in range(2):
        rows = [f"{text} {i},{'good' if i % 2 else 'bad'}" for i, text in enumerate(folders.TEXTS * 6)]
        Path(f"{k}.csv").write_text("\n".join(["text,label", *rows, ""]))
    told = ["model: model", "steps: 4", "batch_size: 4", "r: 2", "tasks:"]
    told += [f"  - {{name: t{k}, data: {k}.csv}}" for k in range(2)]
    Path("tasks.yaml").write_text("\n".join([*told, ""]))
    folders.command("continual", "learn", "tasks.yaml", "--out", "out")


def _long_texts() -> None:
    folders.model(Path("model"), "llama")
    long = [" ".join([*folders.TEXTS, f"w{i}"] * 6) for i in range(3)]
    folders.lines(Path("long.jsonl"), [{"text": t} for t in long])
    Path("long.csv").write_text("text\n" + "".join(f'"{t}"\n' for t in long))
    folders.command(
        "cache", "--model", "model", "--texts", "long.jsonl", "--ratios", "0", "--tokens", "64", "--continued", "2",
        "--out", "out",
    )  # fmt: skip


PRETRAIN = ("pretrain", "vit-cifar10", "--data", "cifar10", "--epochs", "2", "--batch-size", "32", "--out", "vit")


def _cifar_cut() -> None:
    """A training that was killed after its first pass."""
    folders.cifar(Path("cifar10"))
    _cut_in_the_middle(*PRETRAIN, out="vit")


def _forgetful() -> None:
    """A request that is forgotten, and another."""
    folders.model(Path("model"), "llama")
    folders.model(Path("encoder"), "bert")
    for name, word in (("first", "film"), ("second", "paris")):
        rows = [{"question": f"is the {word} good {i}", "answer": "yes" if i % 2 else "no"} for i in range(12)]
        folders.lines(Path(f"{name}.jsonl"), rows)
    Path("second.csv").write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in rows))
    folders.command(*FORGET, "first.jsonl", "--name", "one", "--out", "state")


def _compare() -> None:
    folders.model(Path("model"), "bert")
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("\n".join(folders.TEXTS))


BUILDERS = {
    "merge": lambda: folders.recipe(Path(".")),
    "merged": _merged,
    "merge draft": _merge_draft,
    "llama": _model("llama"),
    "bert": _model("bert"),
    "compress": lambda: _compressable("model"),
    "compressed": _compressed,
    "node": _node,
    "s2lora": _adapter("s2lora"),
    "lora": _adapter("lora"),
    "run": _run,
    "adapt": _adaptable,
    "texts": _texts_of_all_kinds,
    "speech": lambda: folders.recordings(Path("speech")),
    "ctranslate2": lambda: folders.ctranslate2(Path("whisper")),
    "gguf": lambda: folders.gguf(Path("gguf")),
    "record": _record,
    "server": lambda: _answering(True),
    "server sampled": lambda: _answering(False),
    "select": _select,
    "summaries": _summaries,
    "clicks": _clicks,
    "forgetful": _forgetful,
    "compare": _compare,
    "quantiles": _quantiles,
    "quantiles cut": _quantiles_cut,
    "adapt cut": _adapt_cut,
    "kept": _kept,
    "tables": _tables,
    "cifar": lambda: folders.cifar(Path("cifar10")),
    "cifar cut": _cifar_cut,
    "pictures": _pictures,
    "tasks": _tasks,
    "streamed": _streamed,
    "long texts": _long_texts,
}


def imports() -> None:
    """What every entry point loads, once, before forking."""
    import lightgbm
    import quantile_forest
    import sklearn.ensemble
    import torch
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama

    import rankwise.cli.main
    import rankwise.jobs.cache
    import rankwise.jobs.compress
    import rankwise.jobs.pretrain
    import rankwise.jobs.prompting
    import rankwise.jobs.quantile
    import rankwise.jobs.serving
    import rankwise.jobs.tokens
    import rankwise.merging
    import rankwise.prompting.server_model
    import rankwise.report.page
    import rankwise.report.plots

    torch.set_num_threads(1)
    del lightgbm, quantile_forest, sklearn, transformers, rankwise
