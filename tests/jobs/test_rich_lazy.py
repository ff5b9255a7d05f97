"""Two checkpoints compared from files: what is told equals the library's measures, and what is refused."""

import copy
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from rankwise.cli.main import app
from rankwise.dynamics import laziness
from rankwise.jobs.rich_lazy import compare_checkpoints
from rankwise.models import load, load_tokenizer
from small_models import bert, encoder, llama, saved, saved_with_processor, vit

TEXTS = ["a great film", "an awful film 2", "great great film", "awful film", "film 7 great"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("lazy")
    for make, name in ((bert, "bert"), (llama, "llama"), (encoder, "encoder")):
        model = make()
        saved(model, root / name)
        saved(trained(model), root / f"{name}-after")
    saved_with_processor(vit(layers=2), root / "vit")
    saved_with_processor(trained(vit(layers=2)), root / "vit-after")
    (root / "data.csv").write_text("text\n" + "\n".join(TEXTS))
    (root / "photos").mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(noise).save(root / f"photos/{i}.png")
    return root


def trained(model):
    other, g = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.05 * torch.randn(p.shape, generator=g)
    return other


def compared(place, name, **options):
    data = str(place / ("photos" if name == "vit" else "data.csv"))
    return compare_checkpoints(str(place / name), str(place / f"{name}-after"), data, **options)


def test_two_classifiers_are_compared_by_their_class_scores(place):
    done = compared(place, "bert", target="query|dense")
    tokens = load_tokenizer(str(place / "bert"))(TEXTS, return_tensors="pt", padding=True)
    first, last = (load(str(place / f), task="classification").eval() for f in ("bert", "bert-after"))
    inputs = {k: tokens[k] for k in ("input_ids", "attention_mask")}
    exact = laziness(first, last, inputs, params="query|dense")
    assert done.laziness.kernel_alignment == pytest.approx(exact.kernel_alignment, abs=1e-5)
    assert done.laziness.weight_change == pytest.approx(exact.weight_change)
    assert done.laziness.representation_alignment == pytest.approx(exact.representation_alignment, abs=1e-5)
    assert done.outputs == "class scores"
    changes = [w["change"] for w in done.weights]
    assert sum(c**2 for c in changes) == pytest.approx(exact.weight_change**2)
    relative = [np.inf if w["relative_change"] is None else w["relative_change"] for w in done.weights]
    assert relative == sorted(relative, reverse=True)


@pytest.mark.parametrize(
    ("name", "said"), [("llama", "log-probability"), ("encoder", "random directions"), ("vit", "class scores")]
)
def test_decoders_encoders_and_image_classifiers_are_compared_too(place, name, said):
    done = compared(place, name, rows=3)
    assert said in done.outputs
    assert done.rows == 3
    assert 0 < done.laziness.kernel_alignment < 1
    assert all("weight" in w["weight"] for w in done.weights)


def test_padding_says_nothing(place):
    alone = compare_checkpoints(*(str(place / f"encoder{e}") for e in ("", "-after")), str(place / "data.csv"), limit=2)
    tokens = load_tokenizer(str(place / "encoder"))(TEXTS[:2], return_tensors="pt", padding="max_length", max_length=9)
    first, last = (load(str(place / f"encoder{e}"), task="base").eval() for e in ("", "-after"))
    direction = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)) / 2

    def pooled(model, inputs):
        states = model(**inputs).last_hidden_state
        lengths = inputs["attention_mask"].sum(1).tolist()
        return torch.stack([s[:n].mean(0) for s, n in zip(states, lengths, strict=True)]) @ direction

    exact = laziness(
        first, last, {k: tokens[k] for k in ("input_ids", "attention_mask")}, output_fn=pooled,
        params=[w["weight"] for w in alone.weights],
    )  # fmt: skip
    assert alone.laziness.kernel_alignment == pytest.approx(exact.kernel_alignment, abs=1e-4)


def test_a_trunk_and_a_classifier_on_it_are_compared_without_the_head(place):
    done = compare_checkpoints(str(place / "encoder"), str(place / "bert"), str(place / "data.csv"), rows=2)
    assert "embedding" in done.outputs


def test_the_command_prints_tables_writes_a_row_a_weight_and_json(place, tmp_path):
    words = ["dynamics", "laziness", "--before", str(place / "bert"), "--after", str(place / "bert-after"), "--data",
             str(place / "data.csv"), "--rows", "2", "--target", "query"]  # fmt: skip
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "moved.csv")])
    assert said.exit_code == 0, said.output
    assert "kernel alignment" in said.output
    assert "5 inputs, 2 in the tangent kernel of the class scores" in said.output
    with (tmp_path / "moved.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [r["weight"] for r in rows] == [w["weight"] for w in told["weights"]]
    assert len(rows) == 4  # weights and biases of two blocks
    assert told["kernel_alignment"] < 1
    assert told["inputs"] == 5


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"after": "llama"}, "Llama"),
        ({"after": "vit"}, "classifies images"),
        ({"data": "none.csv"}, "no such data file"),
        ({"limit": 0}, "limit=0"),
        ({"rows": 0}, "rows=0"),
        ({"max_length": 1}, "max_length=1"),
        ({"seed": -1}, "seed=-1"),
        ({"target": "qeury"}, "qeury"),
        ({"before": "whisper-tiny.en"}, "whisper"),
        ({"before": "clip-cifar10"}, "clip"),
        ({"before": "nothing-here"}, "nothing-here"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(place, changed, said):
    given = {"before": "bert", "after": "bert-after", "data": "data.csv"} | changed
    for key in ("before", "after", "data"):
        given[key] = str(place / given[key]) if (place / given[key]).exists() else given[key]
    with pytest.raises(ValueError, match=said):
        compare_checkpoints(given.pop("before"), given.pop("after"), given.pop("data"), **given)


def changed_folder(place, tmp_path, name, change):
    """A checkpoint in which one thing differs."""
    model = load(str(place / name), task="classification" if name == "bert" else "causal-lm")
    change(model)
    folder = tmp_path / "changed"
    saved(model, folder)
    return str(folder)


def poisoned(model):
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bert", lambda m: m.bert.encoder.layer.append(copy.deepcopy(m.bert.encoder.layer[0])), "changed alone has"),
        ("bert", lambda m: m.resize_token_embeddings(57), r"word_embeddings.weight is \(50, 16\) in"),
        ("llama", lambda m: m.resize_token_embeddings(57), r"embed_tokens.weight is \(50, 16\) in"),
        ("bert", lambda m: setattr(m, "classifier", torch.nn.Linear(16, 3)), r"classifier.weight is \(2, 16\) in"),
        ("bert", poisoned, "output.dense.weight of .*changed has NaN"),
    ],
    ids=["layers", "words", "words of a decoder", "classes", "NaN"],
)
@pytest.mark.parametrize("turned", [False, True], ids=["", "other way round"])
def test_checkpoints_that_are_not_of_one_network_are_refused_by_name(place, tmp_path, name, change, said, turned):
    def both(model):
        change(model)
        model.config.num_hidden_layers = (
            len(model.base_model.layers) if name == "llama" else len(model.bert.encoder.layer)
        )
        if name == "bert":
            model.config.num_labels = model.classifier.out_features

    pair = [str(place / name), changed_folder(place, tmp_path, name, both)]
    if turned:
        pair, said = pair[::-1], said.replace("50", "57").replace("(2", "(3")
    with pytest.raises(ValueError, match=said):
        compare_checkpoints(*pair, str(place / "data.csv"), target="query|q_proj")


def test_texts_are_read_by_a_tokenizer_of_either_and_of_one_vocabulary(place, tmp_path):
    bare, other = tmp_path / "bare", tmp_path / "other"
    for folder in (bare, other):
        shutil.copytree(place / "bert-after", folder)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    for pair in (("bert", bare), (bare, "bert")):
        found = compare_checkpoints(*(str(place / p) for p in pair), str(place / "data.csv"), rows=2, target="query")
        assert found.laziness.kernel_alignment == pytest.approx(compared(place, "bert", rows=2, target="query")
                                                                .laziness.kernel_alignment, abs=1e-5)  # fmt: skip
    with pytest.raises(ValueError, match="bare has no tokenizer"):
        compare_checkpoints(str(bare), str(bare), str(place / "data.csv"))
    told = json.loads((other / "tokenizer.json").read_text())
    vocab = told["model"]["vocab"]
    vocab["great"], vocab["awful"] = vocab["awful"], vocab["great"]
    (other / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"tokenizers of .* differ"):
        compare_checkpoints(str(place / "bert"), str(other), str(place / "data.csv"))


def test_a_single_text_is_refused_and_one_longer_than_the_positions_is_cut(place, tmp_path):
    (tmp_path / "long.csv").write_text("text\n" + "\n".join(f"great {'film ' * k}awful" for k in (40, 50, 60)))
    with pytest.raises(ValueError, match="a single input"):
        compared(place, "bert", limit=1)
    found = [
        compare_checkpoints(
            *(str(place / f"bert{e}") for e in ("", "-after")),
            str(tmp_path / "long.csv"),
            max_length=length,
            target="query",
        ).laziness
        for length in (32, 4000)
    ]
    assert found[0] == found[1]


def test_a_checkpoint_compared_with_itself_is_wholly_lazy(place):
    for name in ("bert", "llama", "encoder"):
        found = compare_checkpoints(str(place / name), str(place / name), str(place / "data.csv"), rows=3).laziness
        assert found.kernel_alignment == found.representation_alignment == found.sign_similarity == 1
        assert found.weight_change == found.relative_weight_change == 0


def test_what_is_read_is_not_written_over(place):
    for path in (place / "data.csv", place / "bert" / "config.json"):
        with pytest.raises(ValueError):
            compared(place, "bert", out=path)


def test_a_text_of_one_token_has_no_probability(place, tmp_path):
    (tmp_path / "one.csv").write_text("text\ngreat film\nawful\n")
    with pytest.raises(ValueError, match="single token"):
        compare_checkpoints(str(place / "llama"), str(place / "llama-after"), str(tmp_path / "one.csv"))
