"""What can be refused before anything heavy is imported: options, files and folders of the commands.

Each job calls its check itself; the command line calls it first, so that a mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.compression.options import DTYPES, check_options
from rankwise.files import MARKER, check_output
from rankwise.models.names import check_model
from rankwise.nearest import unknown
from rankwise.prompting import names

QUANTILE_MODELS = ("linear", "boosting", "forest", "extra-trees", "gaussian", "network")
VISION_MODELS = ("vit-cifar10", "clip-cifar10")
PAPERS = "text:papers"  # whole papers, which are long enough for a cache
QUANTILES = "quantile fit"  # what makes the folders of quantile models
PERSEVAL = "perseval"  # and those of leaderboards of summaries
PEER = "peer"  # and those of nodes among peers
RANK = "rank fit"  # and those of rankers from clicks
DISTILLED, STUDENTS = "distill", "distill-train"  # and those of distilled pictures and what learns from them
STREAMS = "continual adapt"  # and those of what was learned while predicting
SUBSPACES = "dynamics subspaces"  # and those of clustered tables
ENHANCED, LIGHT = "enhance", "enhance-fit"  # and those of enhanced pictures, and of what enhances them
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")
# classes of `rankwise.continual` that adapt while they predict, and their presets
STREAM_METHODS = {
    "vida": ("TestTimeAdapter", ("ours", "cifar10c", "cifar100c", "imagenetc")),
    "tent": ("Tent", ("ours", "cifar10c", "imagenetc")),
    "cotta": ("CoTTA", ("ours", "cifar10c", "imagenetc")),
}


def check_compression(
    model: str,
    out: Path,
    *,
    calibrate_limit: int = 128,
    test_limit: int = 40,
    max_length: int = 128,
    seed: int = 0,
    dtype: str | None = None,
    **options: Any,
) -> None:
    """Of `rankwise.jobs.compress.compress_model`."""
    check_options(**options)
    for name, value, least in (
        ("calibrate_limit", calibrate_limit, 1),
        ("test_limit", test_limit, 1),
        ("max_length", max_length, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    check_output(out, made_by="compress", inputs=[model])
    check_model(model, "causal-lm")


def check_pretraining(
    name: str, out: Path, *, data: str | Path | None, epochs: int, batch_size: int, seed: int
) -> None:
    """Of `rankwise.jobs.pretrain.pretrain`."""
    if name not in VISION_MODELS:
        raise unknown("vision model", name, VISION_MODELS)
    for option, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{option}={value}: at least {least}")
    if seed >= 2**32:
        raise ValueError(f"seed={seed}: below {2**32}")
    if data is not None and not Path(data).is_dir():
        raise ValueError(f"no such data folder: {data}")
    check_output(out, made_by="pretrain", inputs=[] if data is None else [data])


def check_fit(path: Path, out: Path, *, models: Sequence[str], test_share: float) -> None:
    """Of `rankwise.jobs.quantile.fit_table`."""
    check_output(out, made_by=QUANTILES, inputs=[path])
    if not path.is_file():
        raise ValueError(f"no such data file: {path}")
    if not 0 < test_share < 1:
        raise ValueError(f"test share is {test_share}; between 0 and 1 is accepted")
    check_models(models)


def check_models(models: Sequence[str]) -> None:
    """Of `rankwise.jobs.quantile.base_models`."""
    for name in models:
        if name not in QUANTILE_MODELS:
            raise unknown("base model", name, QUANTILE_MODELS)
    if not models or len(set(models)) < len(models):
        raise ValueError(f"base models are {', '.join(models) or 'none'}; at least one, each once, is accepted")


def check_fitted(folder: Path) -> None:
    """Of `rankwise.jobs.quantile.load_fit`."""
    if (folder / "columns.skops").exists():
        raise ValueError(f"{folder} is of an earlier version, which kept objects that may run code: fit again")
    if not (folder / "model").is_dir():
        raise ValueError(f"{folder} holds no fit of `rankwise {QUANTILES}`: model is missing")


def check_selection(
    method: str, *, order: str, style: str, max_new_tokens: int, options: Mapping[str, object]
) -> dict[str, object]:
    """Of `rankwise.jobs.prompting.prompts_for`; the options that were given."""
    _known(("method", method, names.SELECTORS), ("order", order, names.ORDERS), ("style", style, names.STYLES))
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; at least 1 is needed")
    chosen = {k: v for k, v in options.items() if v is not None and v is not False}
    if strange := [k for k in chosen if k not in names.SELECTORS[method]]:
        raise ValueError(f"{method} has no {' and no '.join(strange)}: leave that out")
    if method == "dq-lore" and "seed" in chosen and "train" not in chosen:
        raise ValueError("dq-lore draws nothing unless it is trained: leave seed out")
    return chosen


def check_answering(method: str, *, length: str, style: str, samples: int) -> None:
    """Of `rankwise.jobs.prompting.answers_for`."""
    _known(("method", method, names.RANKERS), ("length", length, names.LENGTHS), ("style", style, names.STYLES))
    if samples < 0:
        raise ValueError(f"samples={samples} must not be negative")


def check_comparison(*, distance: str, p_value: str) -> None:
    """Of `rankwise compare`."""
    _known(("distance", distance, names.DISTANCES), ("p-value", p_value, names.P_VALUES))


def there(*given: Path | str | None) -> list[Path | str]:
    """What was given and is a file or folder."""
    return [p for p in given if p and Path(p).exists()]


def check_personalisation(
    path: Path, out: Path | None, *, distance: str, stopwords: str | None, model: str | None, **options: Any
) -> None:
    """Of `rankwise.jobs.personalisation.judge_file`."""
    from rankwise.data.tables import kind_of
    from rankwise.ranking.distances import DISTANCES
    from rankwise.ranking.personalisation import check_options

    check_options(simplified=True, **options)
    _known(("distance", distance, DISTANCES))
    for name, value, own in (("stopwords", stopwords, "jsd"), ("model", model, "embedding")):
        if value is not None and distance != own:
            raise ValueError(f"{name} is of {own}, and the distance is {distance}: leave it out, or name {own}")
    if stopwords not in (None, "english", "none") and not Path(stopwords).is_file():
        raise ValueError(f"stopwords '{stopwords}': english, none, or a file with a word a line is accepted")
    kind_of(path)
    if not path.is_file():
        raise ValueError(f"no such data file: {path}")
    if out is not None:
        check_output(out, made_by=PERSEVAL, inputs=there(path, stopwords, model))


def check_peer(
    library: Path, out: Path, *, port: int, page: int | None, peers: Sequence[str], **options: Any
) -> list[tuple[str, int]]:
    """Of `rankwise.jobs.peer.stay`; returns the peers' addresses."""
    from rankwise.ranking.g_rank import check_options

    check_options(**options)
    for name, value in (("port", port), ("page", page)):
        if value is not None and not 0 <= value < 65536:
            raise ValueError(f"{name}={value}; a port from 1 to 65535, or 0 for any that is free, is accepted")
    if not library.is_file():
        raise ValueError(f"no such library: {library}")
    if not (out / MARKER).is_file():  # a node's own folder grows
        check_output(out, made_by=PEER, inputs=[library])
    return [_address(text) for text in peers]


def _address(text: str) -> tuple[str, int]:
    from rankwise.ranking.peers.quotas import address_of

    host, _, port = text.rpartition(":")
    try:
        return address_of(host, int(port))
    except ValueError as error:
        raise ValueError(f"the peer '{text}' is no IPv4 address and port; write 192.0.2.7:8090") from error


def check_ranking(
    path: Path, features: Path | None, out: Path, *, ranker: str, hidden: Sequence[float] | None, held_out: float,
    steps: int, list_size: int, learning_rate: float | None, max_weight: float,
) -> None:  # fmt: skip
    """Of `rankwise.jobs.clicks.fit_log`."""
    from rankwise.data.tables import kind_of

    _known(("ranker", ranker, ("dnn", "linear")))
    for name, value, least in (("steps", steps, 1), ("list_size", list_size, 2)):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    if hidden is not None and ranker != "dnn":
        raise ValueError(f"hidden layers are of dnn, and the network is {ranker}: leave them out")
    if hidden is not None and (not hidden or any(n < 1 or not float(n).is_integer() for n in hidden)):
        raise ValueError(f"hidden layers are {', '.join(f'{n:g}' for n in hidden) or 'none'}: whole numbers from 1 on")
    if not max_weight > 0:
        raise ValueError(f"max_weight={max_weight}: it has to be above 0")
    if learning_rate is not None and not 0 < learning_rate < 3e38:
        raise ValueError(f"learning_rate={learning_rate}: a number above 0 is accepted")
    if not 0 < held_out < 1:
        raise ValueError(f"held-out share is {held_out}; between 0 and 1 is accepted")
    kind_of(path)
    if not path.is_file():
        raise ValueError(f"no such data file: {path}")
    if features is not None:
        check_documents(features)
    check_output(out, made_by=RANK, inputs=there(path, features))


def check_documents(path: Path) -> None:
    """Of `rankwise.data.clicks.read_judged`."""
    from rankwise.data.tables import READERS

    if path.suffix.lower() in READERS:
        raise ValueError(f"{path} is a table, and svmlight lines with qid are read: 'grade qid:QUERY 0:x 1:x # DOC', "
                         "features in the order of the log's columns")  # fmt: skip
    if not path.exists():
        raise ValueError(f"no such data file: {path}")


def check_evaluation(scores: Path, qrels: Path) -> None:
    """Of `rankwise.jobs.clicks.evaluate_scores`."""
    if not scores.is_file() or not qrels.exists():
        raise ValueError(f"no such data file: {qrels if scores.is_file() else scores}")


def check_ranking_run(folder: Path) -> None:
    """Of `rankwise.jobs.clicks.score_documents`."""
    if not (folder / "ranker.json").is_file():
        raise ValueError(f"{folder} holds no ranker of `rankwise {RANK}`: ranker.json is missing")


def _known(*asked: tuple[str, str, Any]) -> None:
    for kind, given, accepted in asked:
        if given not in accepted:
            raise unknown(kind, given, accepted)


def check_tokens(path: Path, out: Path, *, model: str, flops: float, limit: int) -> None:
    """Of `rankwise.jobs.tokens.prune_pictures`."""
    if not path.exists():
        raise ValueError(f"no such picture or folder of pictures: {path}")
    if not 0 < flops <= 1:
        raise ValueError(f"flops={flops}: a share of the dense cost, above 0 and at most 1")
    if limit < 1:
        raise ValueError(f"limit={limit}; at least 1 picture")
    check_output(out, made_by="tokens", inputs=[path, model])
    check_model(model, "image-classification")


def check_caches(
    model: str, out: Path | None, *, ratios: Sequence[float], tokens: int, continued: int, limit: int,
    budget: int | None, bits: int | None, texts: str = PAPERS,
) -> None:  # fmt: skip
    """Of `rankwise.jobs.cache.measure_caches`."""
    if not ratios or not all(0 <= r < 1 for r in ratios):
        said = ", ".join(f"{r:g}" for r in ratios) or "none"
        raise ValueError(f"ratios {said}: shares of channels are needed, from 0 to below 1, such as 0,0.4")
    if len(set(ratios)) < len(ratios):
        raise ValueError(f"ratios {', '.join(f'{r:g}' for r in ratios)}: each once")
    for name, value, least in (("tokens", tokens, 64), ("continued", continued, 1), ("limit", limit, 1)):
        if value < least:
            raise ValueError(f"{name}={value}; at least {least}")
    if bits not in (None, 4, 8):
        raise ValueError(f"bits={bits}: 8 and 4 are known")
    if budget is not None and not 64 <= budget < tokens:
        raise ValueError(f"budget={budget}: from 64 to below the {tokens} tokens of a prompt")
    if out is not None:
        check_output(out, made_by="cache", inputs=[p for p in (texts, model) if Path(p).exists()])
    check_model(model, "causal-lm")


def check_stream(
    images: str, out: Path, *, model: str, method: str, preset: str, batch_size: int, state: Path | None, seed: int
) -> None:
    """Of `rankwise.jobs.stream.adapt_to_pictures`."""
    from rankwise.jobs.predictions import check_out

    _known(("method", method, STREAM_METHODS))
    _known(("preset", preset, STREAM_METHODS[method][1]))
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    if images != "-" and not Path(images).is_dir():
        raise ValueError(f"no such folder of pictures: {images}; a folder, or - for names on standard input")
    inside = [] if images == "-" else [images]
    check_out(out, data=None)
    if state is not None:
        check_output(state, made_by=STREAMS, inputs=[*inside, out, model])
    check_model(model, "image-classification")


def check_forgetting(
    data: Path, out: Path, *, name: str, model: str | None, measured: Mapping[str, Path], **options: Any
) -> None:
    """Of `rankwise.jobs.unlearning.forget_file`."""
    from rankwise.continual.unlearning.names import CHOICES, MADE_BY, check_choices, check_name
    from rankwise.data.tables import kind_of

    check_name(name)
    check_choices(**{k: v for k, v in options.items() if k in CHOICES and v is not None})
    for option, least in (("rank", 1), ("steps", 1), ("batch_size", 1), ("max_length", 2), ("seed", 0)):
        if options.get(option) is not None and options[option] < least:
            raise ValueError(f"{option}={options[option]}: at least {least}")
    for path in (data, *measured.values()):
        kind_of(path)
        if not path.is_file():
            raise ValueError(f"no such data file: {path}")
    check_output(out, made_by=MADE_BY, inputs=[data, *measured.values()])
    if model is not None:
        check_model(model, "causal-lm")
    elif not (out / "o3.json").is_file():
        raise ValueError(f"{out} holds no requests yet: say of which model with --model")


def check_asking(
    folder: Path, *, texts: Sequence[str], data: Path | None, model: str | None, max_new_tokens: int
) -> None:
    """Of `rankwise.jobs.unlearning.ask`."""
    if bool(texts) == (data is not None):
        raise ValueError("give either --text (once for each) or --data FILE")
    if strange := [t for t in texts if not t.strip()]:
        raise ValueError(f"text {strange[0]!r} is empty")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}; at least 1 is needed")
    if data is not None and not data.is_file():
        raise ValueError(f"no such data file: {data}")
    check_requests(folder)
    if model is not None:
        check_model(model, "causal-lm")


def check_requests(folder: Path) -> None:
    """Whether a folder holds requests that are forgotten."""
    if not (folder / "o3.json").is_file():
        raise ValueError(f"{folder} holds no requests of `rankwise continual forget`: o3.json is missing")


def check_distillation(
    data: str, out: Path, *, model: str, template: str, limit: int | None, lr: float, **options: int
) -> None:
    """Of `rankwise.jobs.distill.distill_pictures`."""
    if not 0 < lr < float("inf"):
        raise ValueError(f"learning_rate={lr}: a rate above 0 is accepted")
    for name, value in options.items():
        least = 0 if name in ("rank", "head_rank", "seed") else 1
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; at least 1 picture")
    if template.count("{}") != 1:
        raise ValueError(f"template '{template}': {{}} stands for a class's name in it, once")
    _check_pictures(data)
    _check_beside(out, data)
    check_output(out, made_by=DISTILLED, inputs=there(data, model))
    check_model(model, "zero-shot-image")


def check_student(run: Path, data: str, out: Path | None, *, student: str, width: int, epochs: int, seed: int) -> None:
    """Of `rankwise.jobs.distill.train_from`."""
    _known(("student", student, ("convnet", "resnet")))
    for name, value, least in (("width", width, 1), ("epochs", epochs, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    if not (run / "distilled.json").is_file():
        raise ValueError(f"{run} holds no distilled pictures of `rankwise {DISTILLED}`: distilled.json is missing")
    _check_pictures(data)
    if out is not None:
        _check_beside(out, data)
        check_output(out, made_by=STUDENTS, inputs=[run, *there(data)])


def _check_beside(out: Path, data: str) -> None:
    """Folders inside of a folder of pictures are its classes: the next command would read what this one wrote."""
    folder = Path(data).expanduser()
    if folder.is_dir() and folder.resolve() in out.resolve().parents:
        raise ValueError(f"{out} is inside of {data}, whose folders are classes: write beside it")


def _check_pictures(data: str) -> None:
    from rankwise.data.loading import PICTURES

    if data in PICTURES or Path(data).expanduser().exists():
        return
    if data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise unknown("pictures", data, PICTURES) if "/" not in data else ValueError(f"no such folder: {data}")


def check_subspaces(
    path: Path, out: Path, *, k: int | None, dim: Sequence[int] | None, method: str, max_clusters: int | None,
    n_init: int, seed: int, leave_out: Sequence[str], known: str | None,
) -> None:  # fmt: skip
    """Of `rankwise.jobs.subspaces.cluster_table`."""
    from rankwise.data.tables import kind_of

    _known(("method", method, ("em", "k-subspaces")))
    for name, value, least in (
        ("k", 1 if k is None else k, 1),
        ("max_clusters", 1 if max_clusters is None else max_clusters, 1),
        ("n_init", n_init, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: from 0 to {2**32 - 1} is accepted")
    if max_clusters is not None and k is not None:
        raise ValueError(f"max_clusters={max_clusters} is for a number of clusters that is chosen, not for k={k}")
    if known is not None and known in leave_out:
        raise ValueError(f"column '{known}' is left out and judges: one of both")
    if method != "em" and (k is None or dim is None):
        raise ValueError("auto compares likelihoods, which k-subspaces has none of: give k and dim, or take method em")
    if dim is not None:
        if not dim or any(d < 1 for d in dim):
            raise ValueError(f"dim is {', '.join(map(str, dim)) or 'none'}: whole numbers of at least 1 are accepted")
        if len(dim) > 1 and len(dim) != k:
            raise ValueError(f"dim has {len(dim)} numbers for k={k or 'auto'}: one for all, or one a cluster")
    kind_of(path)
    if not path.is_file():
        raise ValueError(f"no such data file: {path}")
    check_output(out, made_by=SUBSPACES, inputs=[path])


def check_laziness(
    before: str, after: str, data: str, *, out: Path | None, limit: int, rows: int, max_length: int, seed: int
) -> None:
    """Of `rankwise.jobs.rich_lazy.compare_checkpoints`."""
    from rankwise.files import check_file
    from rankwise.jobs.predictions import check_out

    for name, value, least in (
        ("limit", limit, 1),
        ("rows", rows, 1),
        ("max_length", max_length, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}")
    for model in (before, after):
        check_model(model, "base")
    path = Path(data)
    if path.suffix and not path.exists() and ":" not in data:
        raise ValueError(f"no such data file: {data}")
    if out is not None:
        check_out(out, data=path if path.is_file() else None)
        check_file(out, inputs=[p for m in (before, after) if Path(m).is_dir() for p in Path(m).rglob("*")])


def check_light(
    dark: Path, well_lit: Path, out: Path, *, model: str, preset: str | None, seed: int, **changes: Any
) -> None:
    """Of `rankwise.jobs.enhance.fit_enhancer`."""
    for place in (dark, well_lit):
        if not place.is_dir():
            raise ValueError(f"no such folder of pictures: {place}")
    if dark.resolve() == well_lit.resolve():
        raise ValueError(f"{dark} is given as dark and as well-lit: each kind in a folder of its own")
    if preset is not None:
        _known(("preset", preset, ("published", "small")))
    if changes.get("network") is not None:
        _known(("network", str(changes["network"]), ("full", "light")))
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: from 0 to below {2**32}")
    if (rounds := changes.get("rounds")) is not None and rounds < 1:
        raise ValueError(f"rounds={rounds}: at least 1")
    check_output(out, made_by=LIGHT, inputs=[dark, well_lit, *there(model)])
    check_model(model, "zero-shot-image")


def check_enhancing(path: Path, out: Path, *, fitted: Path, smooth: float) -> None:
    """Of `rankwise.jobs.enhance.enhance_files`."""
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    if not (fitted / "enhancer.json").is_file():
        raise ValueError(f"{fitted} holds nothing that `rankwise {LIGHT}` wrote: enhancer.json is missing")
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth={smooth}; from 0 to below 1")
    check_output(out, made_by=ENHANCED, inputs=[path, fitted])
