"""Small whole things to attack: models, adapters, runs, saved quantiles, tables, recordings, recipes, records."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

import small_models

VOCABULARY = 320
WORDS = [
    "the",
    "a",
    "good",
    "bad",
    "film",
    "was",
    "is",
    "it",
    "not",
    "very",
    "what",
    "yes",
    "no",
    "paris",
    "rome",
    "one",
]
TEXTS = ["the film was good", "the film was bad", "it is not good", "it is very good", "a bad film", "a good film"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and the common pieces of a few words."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    made.train_from_iterator(TEXTS + WORDS, VOCABULARY, min_frequency=1, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]",
        chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}",
    )  # fmt: skip


def model(folder: Path, kind: str = "llama", seed: int = 0) -> Path:
    """A model folder with a tokenizer."""
    made = small_models.MAKERS[kind]()
    made.resize_token_embeddings(VOCABULARY)
    if kind == "llama":
        made.config.max_position_embeddings = 512
    if seed:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, kind: str) -> Path:
    """An adapter of a base model's folder, with random values."""
    from peft import LoraConfig, get_peft_model

    from rankwise.models import load
    from rankwise.tuning import S2LoraConfig

    config = {
        "lora": lambda: LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"),
        "s2lora": lambda: S2LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"),
    }[kind]()
    small_models.randomise(get_peft_model(load(str(base), task="classification"), config)).save_pretrained(folder)
    return folder


def cifar(folder: Path, rows: int = 96) -> Path:
    """Handwritten digits of 8 x 8 pixels in the layout of the hub's CIFAR-10; a third of them are for testing."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from sklearn.datasets import load_digits

    (folder / "plain_text").mkdir(parents=True)
    images, labels = load_digits(return_X_y=True)
    cells = []
    for image in (images[:rows].reshape(-1, 8, 8) * 15.9).astype(np.uint8):
        Image.fromarray(image).convert("RGB").save(held := io.BytesIO(), "PNG")
        cells.append({"bytes": held.getvalue(), "path": None})
    for split, part in (("train", slice(0, 2 * rows // 3)), ("test", slice(2 * rows // 3, rows))):
        table = pa.table({"img": cells[part], "label": labels[:rows][part]})
        pq.write_table(table, folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


def pictures(folder: Path) -> Path:
    """A picture of each kind that is read."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 32, 4)).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    colours, grey = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0])
    colours.save(folder / "a.png")
    Image.fromarray(noise).save(folder / "alpha.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    colours.save(folder / "turned.jpg", exif=turned)
    colours.save(folder / "moves.gif", save_all=True, append_images=[grey.convert("RGB")])
    colours.save(folder / "b.webp", lossless=True)
    grey.save(folder / "c.tif", compression="tiff_lzw")
    colours.save(folder / "d.bmp")
    return folder


def table(path: Path, rows: int = 60) -> Path:
    """Numbers, words and a target; by the file's ending."""
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=rows), "rooms": rng.integers(1, 5, rows)})
    frame["town"] = rng.choice(["rome", "paris"], rows)
    frame["price"] = frame["size"] + rng.normal(size=rows) * 0.1
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def texts(path: Path, rows: int = 40) -> Path:
    """Labelled texts; by the file's ending."""
    import pandas as pd

    rng = np.random.default_rng(0)
    made = [" ".join(rng.choice(WORDS, 5)) + f" w{i % 20}" for i in range(rows)]
    frame = pd.DataFrame(
        {"text": made, "label": [("no", "yes")[" good" in t or i % 3 == 0] for i, t in enumerate(made)]}
    )
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def lines(path: Path, rows: list[dict]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def recordings(folder: Path) -> Path:
    """Three short recordings and their manifest."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    sound = np.sin(np.arange(8000) / 10).astype(np.float32) * 0.3
    names = ["a.wav", "b.flac", "c.ogg"]
    for name in names:
        soundfile.write(folder / name, sound, 16_000)
    lines(folder / "manifest.jsonl", [{"path": n, "text": "hello there"} for n in names])
    return folder


def ctranslate2(folder: Path) -> Path:
    """A Whisper of random weights as a CTranslate2 folder, written after the description of the format."""
    state = small_models.whisper().state_dict()
    variables = {}
    for side in ("encoder", "decoder"):
        put = {f"{side}/position_encodings/encodings": f"{side}.embed_positions.weight"}
        for kind, theirs in (("gamma", "weight"), ("beta", "bias")):
            put[f"{side}/layer_norm/{kind}"] = f"{side}.layer_norm.{theirs}"
        variables |= {k: state[f"model.{v}"] for k, v in put.items()}
        variables[f"{side}/num_heads"] = torch.tensor(2, dtype=torch.int16)
        for i in range(2):
            ours, theirs = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            _attention(variables, state, f"{ours}/self_attention", f"{theirs}.self_attn", fused=["q", "k", "v"])
            if side == "decoder":
                _attention(variables, state, f"{ours}/attention", f"{theirs}.encoder_attn", fused=["k", "v"])
            for n, name in ((0, "fc1"), (1, "fc2")):
                for kind in ("weight", "bias"):
                    variables[f"{ours}/ffn/linear_{n}/{kind}"] = state[f"{theirs}.{name}.{kind}"]
            for kind, name in (("gamma", "weight"), ("beta", "bias")):
                variables[f"{ours}/ffn/layer_norm/{kind}"] = state[f"{theirs}.final_layer_norm.{name}"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            variables[f"encoder/{conv}/{kind}"] = state[f"model.encoder.{conv}.{kind}"]
    variables["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    (folder / "model.bin").write_bytes(_binary(variables, aliases))
    added = ["<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>", "<|startofprev|>"]
    (folder / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"content": t, "id": i} for i, t in enumerate(added)]})
    )
    (folder / "config.json").write_text(
        json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3], "alignment_heads": [[0, 1]]})
    )
    return folder


def _attention(variables: dict, state: dict, ours: str, theirs: str, *, fused: list[str]) -> None:
    separate = [] if "q" in fused else ["q_proj"]
    for kind in ("weight", "bias"):
        zero = torch.zeros_like(state[f"{theirs}.q_proj.bias"])
        parts = [state.get(f"{theirs}.{p}_proj.{kind}", zero) for p in fused]
        for n, piece in enumerate([*(state[f"{theirs}.{s}.{kind}"] for s in separate), torch.cat(parts)]):
            variables[f"{ours}/linear_{n}/{kind}"] = piece
        variables[f"{ours}/linear_{len(separate) + 1}/{kind}"] = state[f"{theirs}.out_proj.{kind}"]
    norm = theirs + "_layer_norm"
    variables[f"{ours}/layer_norm/gamma"] = state[f"{norm}.weight"]
    variables[f"{ours}/layer_norm/beta"] = state[f"{norm}.bias"]


def _binary(variables: dict, aliases: dict) -> bytes:
    def text(t: str) -> bytes:
        return struct.pack("<H", len(t) + 1) + t.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<I", 3) + struct.pack("<I", len(variables))
    for name, tensor in variables.items():
        data = tensor.numpy().tobytes()
        code = {torch.float32: 0, torch.int16: 2}[tensor.dtype]
        out += text(name) + struct.pack("<B", tensor.ndim) + struct.pack(f"<{tensor.ndim}I", *tensor.shape)
        out += struct.pack("<BI", code, len(data)) + data
    out += struct.pack("<I", len(aliases))
    return out + b"".join(text(a) + text(n) for a, n in aliases.items())


def gguf(folder: Path) -> Path:
    """A small Llama as a GGUF file, with a vocabulary."""
    import gguf as library

    net = small_models.llama()
    config, state = net.config, net.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    writer = library.GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    words = [w for w, _ in sorted(tokenizer().get_vocab().items(), key=lambda item: item[1])][:47]
    words += ["a", "b", "ab"]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    tops = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, tensor in state.items():
        if name not in tops:
            _, _, layer, rest = name.split(".", 3)
            tops[name] = f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"
        writer.add_tensor(tops[name], tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def recipe(folder: Path) -> Path:
    """A merge of two fine-tuned models into a base; names are relative to the folder."""
    for name, seed in (("base", 0), ("one", 1), ("two", 2)):
        model(folder / name, seed=seed)
    (folder / "merge.yaml").write_text(
        "merge_method: ties\nbase_model: base\nmodels:\n"
        "  - model: one\n    parameters: {weight: 0.5, density: 0.6}\n"
        "  - model: two\n    parameters: {weight: [0.2, 0.8], density: 0.5}\n"
        "parameters: {normalize: true, int8_mask: false}\ndtype: float32\ntokenizer_source: base\n"
    )
    return folder


def command(*args: object) -> None:
    """`rankwise ARGS` in this process; what it says on an error is raised."""
    from rankwise.cli.main import app

    app([str(a) for a in args], standalone_mode=False)
