"""Whisper out of a CTranslate2 ``model.bin``: read without its runtime, written as a `transformers` folder.

The file is little-endian: version, name of the specification, revision, number of variables; then each variable as
name, rank, dimensions, type, bytes, data; then aliases. A string is its length with the closing NUL, then its bytes.
CTranslate2 stores the projections of one input fused, rows in the order query, key, value; the key's bias, which
Whisper does not have, is zero there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rankwise.reading import read_json

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

BINARY_VERSION = 6
# bfloat16 (5) has no numpy type: it is read as 16 bits and shifted into a float32
_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, np.uint16)


def read_variables(path: Path) -> dict[str, Tensor]:
    """Every variable of a ``model.bin`` by name, aliases resolved, in the stored type (bfloat16 as float32).

    Raises
    ------
    ValueError
        Another binary version, an unknown type, a size that does not fit the shape, or a file cut short.
    """
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    with path.open("rb") as stream, _whole(path):
        version = _number(stream, "I")
        if version != BINARY_VERSION:
            raise ValueError(f"binary version {version}; {BINARY_VERSION} is read")
        _specification, _revision = _text(stream), _number(stream, "I")
        variables = dict(_variable(stream) for _ in range(_number(stream, "I")))
        for _ in range(_number(stream, "I")):
            alias, name = _text(stream), _text(stream)
            variables[alias] = variables[name]
    return variables


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Whatever does not fit together in a broken file becomes one line that names it."""
    try:
        yield
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # as of the classes of configurations
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a CTranslate2 model: {said}. Is the file whole?") from error


def _number(stream: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", stream.read(struct.calcsize(kind)))[0]


def _text(stream: BinaryIO) -> str:
    text = stream.read(_number(stream, "H"))[:-1].decode("utf-8", "replace")
    if not text.isprintable():
        raise ValueError(f"a name is no text: {text[:20]!r}")
    return text


def _variable(stream: BinaryIO) -> tuple[str, Tensor]:
    name = _text(stream)
    shape = [_number(stream, "I") for _ in range(_number(stream, "B"))]
    code, size = _number(stream, "B"), _number(stream, "I")
    if code >= len(_TYPES):
        raise ValueError(f"variable {name} has type {code}; 0 to {len(_TYPES) - 1} are known")
    kind = np.dtype(_TYPES[code]).newbyteorder("<")
    left = os.fstat(stream.fileno()).st_size - stream.tell()
    if size != prod(shape) * kind.itemsize or size > left:
        raise ValueError(f"variable {name} has {min(size, left)} bytes for shape {shape}")
    data = np.frombuffer(bytearray(stream.read(size)), dtype=kind)
    if code == 5:
        data = (data.astype(np.uint32) << 16).view(np.float32)
    return name, torch.from_numpy(data.reshape(shape))


def whisper_state(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The variables of a CTranslate2 Whisper under the names of `transformers`, float32; the proof is in the tests.

    Raises
    ------
    ValueError
        A variable is missing, or a key bias is not zero: not a Whisper model.
    """
    v = {n: t.float() for n, t in variables.items()}
    state: dict[str, Tensor] = {}

    def put(theirs: str, ours: str, *parts: str) -> None:
        """One linear or norm layer; ``parts`` are the projections fused in it, in order."""
        norm = f"{ours}/gamma" in v
        for kind, name in (("weight", "gamma" if norm else "weight"), ("bias", "beta" if norm else "bias")):
            pieces = v[f"{ours}/{name}"].chunk(max(len(parts), 1))
            for part, piece in zip(parts or ("",), pieces, strict=True):
                if part == "k_proj" and kind == "bias":
                    if piece.any():
                        raise ValueError(f"{ours}: the key's bias is not zero; this is not a Whisper model")
                    continue
                state[f"model.{theirs}{'.' if part else ''}{part}.{kind}"] = piece.clone()

    try:
        for side in ("encoder", "decoder"):
            state[f"model.{side}.embed_positions.weight"] = v[f"{side}/position_encodings/encodings"]
            put(f"{side}.layer_norm", f"{side}/layer_norm")
            for i in range(_layers(v, side)):
                theirs, ours = f"{side}.layers.{i}", f"{side}/layer_{i}"
                put(f"{theirs}.self_attn", f"{ours}/self_attention/linear_0", "q_proj", "k_proj", "v_proj")
                put(f"{theirs}.self_attn.out_proj", f"{ours}/self_attention/linear_1")
                put(f"{theirs}.self_attn_layer_norm", f"{ours}/self_attention/layer_norm")
                if side == "decoder":
                    put(f"{theirs}.encoder_attn.q_proj", f"{ours}/attention/linear_0")
                    put(f"{theirs}.encoder_attn", f"{ours}/attention/linear_1", "k_proj", "v_proj")
                    put(f"{theirs}.encoder_attn.out_proj", f"{ours}/attention/linear_2")
                    put(f"{theirs}.encoder_attn_layer_norm", f"{ours}/attention/layer_norm")
                put(f"{theirs}.fc1", f"{ours}/ffn/linear_0")
                put(f"{theirs}.fc2", f"{ours}/ffn/linear_1")
                put(f"{theirs}.final_layer_norm", f"{ours}/ffn/layer_norm")
        put("encoder.conv1", "encoder/conv1")
        put("encoder.conv2", "encoder/conv2")
        state["model.decoder.embed_tokens.weight"] = v["decoder/embeddings/weight"]
        state["proj_out.weight"] = v["decoder/projection/weight"]
    except KeyError as error:
        raise ValueError(f"no variable {error} in this file: not a CTranslate2 Whisper model") from error
    return state


def _layers(variables: dict[str, Tensor], side: str) -> int:
    return len({n.split("/")[1] for n in variables if n.startswith(f"{side}/layer_") and "/ffn/" in n})


def whisper_model(folder: Path) -> WhisperForConditionalGeneration:
    """The model in a CTranslate2 folder (``model.bin``, ``config.json``), float32, with its generation settings."""
    variables = read_variables(folder / "model.bin")
    settings, vocabulary = read_json(folder / "config.json"), read_json(folder / "tokenizer.json")
    with _whole(folder):
        return _built(variables, settings, {t["content"]: t["id"] for t in vocabulary["added_tokens"]})


def _built(variables: dict[str, Tensor], settings: dict, token: dict[str, Any]) -> WhisperForConditionalGeneration:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    state = whisper_state(variables)
    vocabulary, width = state["proj_out.weight"].shape
    heads = {s: int(variables[f"{s}/num_heads"]) for s in ("encoder", "decoder")}
    depth = {s: _layers(variables, s) for s in heads}
    tokens: dict[str, Any] = {
        "bos_token_id": token["<|startoftranscript|>"],
        "decoder_start_token_id": token["<|startoftranscript|>"],
        "eos_token_id": token["<|endoftext|>"],
        "pad_token_id": token["<|endoftext|>"],
    }
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        encoder_layers=depth["encoder"],
        decoder_layers=depth["decoder"],
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=state["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=state["model.decoder.embed_positions.weight"].shape[0],
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **tokens,
    )
    with torch.device("meta"):  # sizes that do not fit together are found before anything is allocated
        model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **tokens,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        is_multilingual=False,
        no_timestamps_token_id=token["<|notimestamps|>"],
        prev_sot_token_id=token["<|startofprev|>"],
        return_timestamps=False,
        max_length=config.max_target_positions,
    )
    return model
