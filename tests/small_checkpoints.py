"""Small checkpoints that merges are tried on, and the recipes that are run by mergekit, too."""

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

THREE = (1.0, 0.5, 0.7)
GRADIENT = [{"filter": "mlp", "value": [0.2, 1.0, 0.4]}, {"value": 0.6}]
WORDS = {
    "base": ["<unk>", "the", "rank", "of", "a", "matrix"],
    "a": ["<unk>", "matrix", "the", "rank", "of", "a", "sparse"],  # another order, and a word more
    "b": ["<unk>", "the", "rank", "of", "a", "matrix", "dense"],
}


def tiny(**changes):
    config = {
        "vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(config | changes)))


def moved(model, seed, size=0.05):
    """The same model, with every weight moved at random."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return model


def tensors(folder):
    """All tensors of a folder."""
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def recipe(root, method, parameters=None, per_model=None, **changes):
    """A merge of three experts; of a tuple each gets its own."""

    def own(i):
        return {k: (v[i] if isinstance(v, tuple) else v) for k, v in (per_model or {}).items()}

    config = {
        "merge_method": method,
        "base_model": str(root / "base"),
        "models": [{"model": str(root / f"e{i}"), "parameters": own(i)} for i in range(3)],
        "parameters": parameters or {},
        "dtype": "float32",
    }
    return {k: v for k, v in (config | changes).items() if v is not None}


def stacked(root, method, *slices, **changes):
    """``slices`` of ``(parameters, (model, first, last), …)``."""
    made = [
        {"sources": [{"model": str(root / m), "layer_range": [a, b]} for m, a, b in sources], "parameters": parameters}
        for parameters, *sources in slices
    ]
    return {"merge_method": method, "slices": made, "dtype": "float32", **changes}


def with_words(folder, words, seed):
    """A model whose tokens are words; its embedding."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<unk>").save_pretrained(folder)
    torch.manual_seed(seed)
    made = tiny(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16,
    )  # fmt: skip
    made.save_pretrained(folder)
    return made.model.embed_tokens.weight.detach()


SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32,
    "head_dim": 8,
}  # fmt: skip
KINDS = ["sliding_attention", "full_attention"]


def eyes(folder, words=None):
    """A model that sees and speaks, with a tokenizer of these words."""
    text = SMALL | {"num_hidden_layers": 4, "layer_types": KINDS * 2, "sliding_window": 4}
    seeing = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    if words is not None:
        with_words(folder, words, 0)
        (folder / "model.safetensors").unlink()
        text |= {"vocab_size": len(words)}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=seeing, mm_tokens_per_image=4)
    moved(Gemma3ForConditionalGeneration(config), len(words or ())).save_pretrained(folder)


def same_as_mergekit(folders, words):
    """Recipes by name that mergekit carries out, too."""
    e, base = [str(folders / f"e{i}") for i in range(3)], str(folders / "base")
    single = [{"model": m} for m in (base, e[0])]
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0, 0.5]},
        {"value": 0.4},
    ]
    ties = {"density": 0.5, "weight": [0.2, 1.0]}
    tokens = [{"model": str(words / n), "parameters": {"weight": 0.5}} for n in ("a", "b")]
    vocabulary = {
        "merge_method": "task_arithmetic",
        "base_model": str(words / "base"),
        "models": tokens,
        "dtype": "float32",
    }
    given = {
        "<new>": {"source": {"kind": "model_token", "model": str(words / "a"), "token": "sparse"}},
        "<nil>": {"source": {"kind": "zero"}},
        "rank": {"source": str(words / "b"), "force": True},
        "dense": {"source": {"kind": "model_token", "model": str(words / "base"), "token_id": 2}},
    }
    return {
        "linear": recipe(folders, "linear", {}, {"weight": THREE}, base_model=None),
        "linear gradient": recipe(folders, "linear", {"normalize": False}, {"weight": GRADIENT}, base_model=None),
        "linear base listed": recipe(folders, "linear", {"weight": 0.5}, models=single),
        "arithmetic": recipe(folders, "task_arithmetic", {"lambda": 0.4}, {"weight": THREE}),
        "arithmetic gradient": recipe(folders, "task_arithmetic", {"normalize": True}, {"weight": GRADIENT}),
        "ties": recipe(folders, "ties", {"lambda": 0.8}, {"weight": THREE, "density": (0.2, 0.5, 0.9)}),
        "ties from zero": recipe(folders, "ties", {"normalize": False}, {"weight": THREE, "density": [0, 0.5, 1]}),
        "ties rescaled": recipe(
            folders, "ties", {"normalize": False, "rescale": True}, {"weight": GRADIENT, "density": 0.3}
        ),
        "breadcrumbs": recipe(folders, "breadcrumbs", {}, {"weight": THREE, "density": 0.9, "gamma": 0.01}),
        "breadcrumbs_ties": recipe(folders, "breadcrumbs_ties", {}, {"weight": THREE, "density": 0.5, "gamma": 0.1}),
        "stock": recipe(folders, "model_stock", {"filter_wise": False}),
        "stock by row": recipe(folders, "model_stock", {"filter_wise": True}),
        "slerp": recipe(folders, "slerp", {"t": t}, models=single),
        "slerp sliced": stacked(
            folders, "slerp", ({}, ("base", 0, 4), ("e0", 0, 4)), base_model=base, parameters={"t": t}
        ),
        "passthrough": recipe(folders, "passthrough", base_model=None, models=single[1:]),
        "stacked": stacked(
            folders, "passthrough", ({}, ("e0", 0, 3)), ({}, ("e1", 1, 4)),
            ({"scale": [{"filter": "o_proj", "value": 0.0}, {"value": 1.0}]}, ("e2", 2, 4)),
        ),
        "stacked, linear": stacked(
            folders, "linear", ({"weight": 1.0}, ("e0", 0, 1), ("e1", 0, 1)), ({"weight": 1.0}, ("e2", 1, 4)),
        ),
        "stacked, ties": stacked(
            folders, "ties", (ties, ("base", 0, 3), ("e0", 0, 3), ("e1", 0, 3)),
            (ties | {"density": 0.9}, ("base", 1, 4), ("e0", 1, 4), ("e1", 0, 3)), base_model=base,
        ),
        "union": vocabulary | {"tokenizer_source": "union"},
        "tokens": vocabulary | {"tokenizer": {"source": "union", "tokens": given, "pad_to_multiple_of": 4}},
    }  # fmt: skip
