"""The job behind `rankwise cache`: bytes, losses and next tokens of thinned caches, on a tiny model in a folder."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from rankwise.compression import planned_bytes
from rankwise.jobs.cache import measure_caches
from rankwise.report.tables import caches
from small_models import WORDS, saved

TOKENS, MORE = 80, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=128,
    )  # fmt: skip
    return str(saved(LlamaForCausalLM(config).eval(), tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = [w for w in WORDS if w.isalpha()]
    lines = [" ".join(words[(i * k) % len(words)] for i in range(n)) for k, n in ((3, 120), (5, 20), (7, 130))]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    return str(path)


def test_whole_caches_give_the_models_own_losses_and_bytes_are_those_planned(folder, texts):
    done = measure_caches(folder, texts, ratios=(0.0, 0.5), tokens=TOKENS, continued=MORE)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lines = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()]
    losses = []
    for text in (lines[0], lines[2]):
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : TOKENS + MORE + 1]
        logits = model(ids).logits[0, TOKENS:-1]
        losses.append(float(F.cross_entropy(logits, ids[0, TOKENS + 1 :])))
    assert done.used == 2  # the second text is too short
    assert done.rows[0].perplexity == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4)
    assert done.rows[0].agreement == 1
    for row in done.rows:
        assert row.bytes == planned_bytes(model.config, tokens=TOKENS, ratio=row.ratio) - 2 * 8  # no positions are held
        assert row.tokens_per_second > 0
    assert done.whole == done.rows[0].bytes
    assert caches(done)[1][1][2] == f"{done.rows[1].bytes / done.whole:.2f}"


def test_options_reach_the_caches(folder, texts):
    done = measure_caches(folder, texts, ratios=(0.0,), tokens=TOKENS, continued=2, budget=64, bits=8, limit=1)
    assert done.used == 1
    config = AutoModelForCausalLM.from_pretrained(folder).config
    planned = planned_bytes(config, tokens=TOKENS, ratio=0.0, budget=64, bits=8)
    assert done.rows[0].bytes == planned - 2 * 8
    assert done.whole == planned_bytes(config, tokens=TOKENS, ratio=0.0) - 2 * 8


def test_a_report_is_written_as_a_whole(folder, texts, tmp_path):
    from rankwise.report.page import write_caches

    out = tmp_path / "out"
    measure_caches(
        folder, texts, out=out, ratios=(0.0, 0.5), tokens=TOKENS, continued=2, limit=1,
        report=lambda at, done: write_caches(at, done, "rankwise cache"),
    )  # fmt: skip
    assert json.loads((out / "cache.json").read_text())["rows"][1]["ratio"] == 0.5
    assert {"cache.png", "report.html"} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratios": ()}, "ratios none"),
        ({"ratios": (0.2, 1.0)}, "ratios 0.2, 1"),
        ({"ratios": (0.2, 0.4, 0.2)}, "ratios 0.2, 0.4, 0.2: each once"),
        ({"tokens": 10}, "tokens=10; at least 64"),
        ({"continued": 0}, "continued=0"),
        ({"limit": 0}, "limit=0"),
        ({"bits": 3}, "bits=3: 8 and 4"),
        ({"tokens": 80, "budget": 80}, "budget=80: from 64 to below the 80 tokens"),
        ({"tokens": 300}, r"no text has 3\d\d tokens \(the longest has 130\)"),
        ({"tokens": 100, "continued": 29}, r"no text has 130|more than the 128 positions"),
    ],
)
def test_what_cannot_be_measured_is_refused(folder, texts, options, said):
    with pytest.raises(ValueError, match=said):
        measure_caches(folder, texts, **options)


def test_a_model_whose_logits_are_nan_is_refused(folder, texts, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] = float("nan")
    broken = str(saved(model, tmp_path / "broken"))
    with pytest.raises(ValueError, match="logits are nan or inf"):
        measure_caches(broken, texts, tokens=TOKENS, continued=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_measured_are_refused_by_what_they_are(texts, tmp_path):
    torch.manual_seed(0)
    small = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
        "max_position_embeddings": 128,
    }  # fmt: skip
    neox, gemma = GPTNeoXConfig(**small), Gemma2Config(**small, num_key_value_heads=2, head_dim=8, sliding_window=16)
    for model, said in (
        (GPTNeoXForCausalLM(neox), "gpt_neox does not tell its cache who reads it"),
        (Gemma2ForCausalLM(gemma), "gemma2 has layers that are not thinned, with windows"),
    ):
        with pytest.raises(ValueError, match=said):
            measure_caches(str(saved(model, tmp_path / type(model).__name__)), texts, tokens=TOKENS, continued=2)


def test_how_many_texts_were_read_is_told_and_ratios_are_printed_as_they_are(folder, texts):
    done = measure_caches(folder, texts, ratios=(0.125,), tokens=TOKENS, continued=2, limit=1)
    assert done.told() == f"1 text of {texts}: 80 tokens are thinned, 2 read after"
    assert caches(done)[1][0][0] == "12.5%"
