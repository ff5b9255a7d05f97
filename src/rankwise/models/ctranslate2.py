"""Whisper out of a CTranslate2 ``model.bin``: read without its runtime, written as a `transformers` folder.

The file is little-endian: version, name of the specification, revision, number of variables; then each variable as
name, rank, dimensions, type, bytes, data; then aliases. A string is its length with the closing NUL, then its bytes.
CTranslate2 stores the projections of one input fused, rows in the order query, key, value; the key's bias, which
Whisper does not have, is zero there.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

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
    with path.open("rb") as stream:
        try:
            version = _number(stream, "I")
            if version != BINARY_VERSION:
                raise ValueError(f"{path} is CTranslate2 binary version {version}; {BINARY_VERSION} is read")
            _specification, _revision = _text(stream), _number(stream, "I")
            variables = dict(_variable(stream) for _ in range(_number(stream, "I")))
            for _ in range(_number(stream, "I")):
                alias, name = _text(stream), _text(stream)
                variables[alias] = variables[name]
        except (struct.error, KeyError, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as a CTranslate2 model: {error!r}. Is the file whole?") from error
    return variables


def _number(stream: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", stream.read(struct.calcsize(kind)))[0]


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "H"))[:-1].decode()


def _variable(stream: BinaryIO) -> tuple[str, Tensor]:
    name = _text(stream)
    shape = [_number(stream, "I") for _ in range(_number(stream, "B"))]
    code, size = _number(stream, "B"), _number(stream, "I")
    raw, kind = bytearray(stream.read(size)), np.dtype(_TYPES[code]).newbyteorder("<")
    if len(raw) != int(np.prod(shape)) * kind.itemsize:
        raise ValueError(f"variable {name} has {len(raw)} bytes for shape {shape}. Is the file whole?")
    data = np.frombuffer(raw, dtype=kind)
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
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    variables = read_variables(folder / "model.bin")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    token = {t["content"]: t["id"] for t in added}
    state = whisper_state(variables)
    vocabulary, width = state["proj_out.weight"].shape
    heads = {s: int(variables[f"{s}/num_heads"]) for s in ("encoder", "decoder")}
    depth = {s: _layers(variables, s) for s in heads}
    tokens = {
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
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state)
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
