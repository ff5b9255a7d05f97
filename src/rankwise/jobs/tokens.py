"""Pictures through a model with fewer tokens: which patches stay, and what the model says before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankwise.files import whole_folder, write_json
from rankwise.jobs.early import check_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from rankwise.compression import TokenPruning, TokenSchedule
    from rankwise.data import Images

HEADER = ["image", "before", "after", "p before", "p after"]


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """One picture.

    Attributes
    ----------
    image : str
        Its file.
    before, after : str
        What the model says of it with all tokens and with fewer.
    p_before, p_after : float
        How sure it is.
    kept : dict of int to list of int
        Patches that stay after a pruning layer, row by row from 0, by layer.
    similar : dict of int to list of int
        Those that left there because another is like them.
    """

    image: str
    before: str
    after: str
    p_before: float
    p_after: float
    kept: dict[int, list[int]]
    similar: dict[int, list[int]]


@dataclass(frozen=True, kw_only=True)
class TokenReport:
    """All pictures, and what pruning saves.

    Attributes
    ----------
    model : str
    share : float
        What is left of the dense multiply-accumulates.
    schedule : TokenSchedule
    seen : list of Pictured
    pixels : list of ndarray
        The pictures as the model sees them, ``(height, width, 3)``, from 0 to 1.
    grid : (int, int)
        Rows and columns of patches.
    notes : list of str
        What was changed or passed over when the pictures were read.
    """

    model: str
    share: float
    schedule: TokenSchedule
    seen: list[Pictured]
    pixels: list[NDArray[np.float32]]
    grid: tuple[int, int]
    notes: list[str]

    @property
    def agreement(self) -> float:
        """Share of pictures of which the model says the same."""
        return sum(s.before == s.after for s in self.seen) / len(self.seen)

    def rows(self) -> list[list[str]]:
        """Of a table under `HEADER`."""
        return [[s.image, s.before, s.after, f"{s.p_before:.3f}", f"{s.p_after:.3f}"] for s in self.seen]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {"model": self.model, "share": self.share, "agreement": self.agreement, "notes": self.notes}
        return told | {"schedule": asdict(self.schedule), "images": [asdict(s) for s in self.seen]}


def prune_pictures(
    path: Path,
    out: Path,
    *,
    model: str,
    flops: float = 0.65,
    captions: Sequence[str] = (),
    split: str | None = None,
    limit: int = 8,
    report: Callable[[Path, TokenReport], None] | None = None,
) -> TokenReport:
    """What a model makes of pictures with fewer tokens, kept as ``tokens.json`` in a folder.

    Parameters
    ----------
    path : Path
        A picture, or a folder of them.
    out : Path
        Folder to write, replaced as a whole.
    model : str
        An image classifier or a CLIP: a bundled name, a folder, a hub id.
    flops : float
        Share of the dense cost that is left.
    captions : sequence of str
        What a CLIP chooses from; for a classifier, which has its own labels, none.
    split : str, optional
        Of a folder that has several, as for `rankwise.data.read_images`.
    limit : int
        Most pictures; of a folder with more, some are chosen by their content.
    report : callable, optional
        Writes further files into the folder.

    Raises
    ------
    ValueError
        As `check_tokens`; pictures that cannot be read; a target out of reach; a model that says nothing finite of a
        picture; captions where the model has labels, none where it has not, and captions that are equal or too long.
    """
    check_tokens(path, out, model=model, flops=flops, limit=limit)
    import torch

    from rankwise.compression import zero_tprune
    from rankwise.models import load, load_image_processor
    from rankwise.models.loading import placed

    pictures, network = _pictures(path, split, limit), placed(load(model).eval())
    says = _speaker(network, model, captions)
    processor = load_image_processor(model)
    # one at a time: a photograph takes a hundred times what the model sees of it
    prepared = [processor(pictures.pil(i), return_tensors="pt")["pixel_values"] for i in range(len(pictures))]
    batch = torch.cat(prepared).to(network.device)
    with whole_folder(out, made_by="tokens", inputs=[path, model]) as draft, torch.inference_mode():
        before = says(batch)
        with zero_tprune(network, target_flops=flops) as pruned:
            done = TokenReport(
                model=model,
                share=pruned.flops().share,
                schedule=pruned.schedule,
                seen=_seen(pictures.keys, before, says(batch), pruned, batch),
                pixels=_shown(batch, processor),
                grid=_grid(pruned, batch),
                notes=pictures.notes,
            )
        write_json(draft / "tokens.json", done.as_dict())
        if report is not None:
            report(draft, done)
    return done


def _pictures(path: Path, split: str | None, limit: int) -> Images:
    from rankwise.data import Images, read_images
    from rankwise.data.images import read_image

    if path.is_dir():
        parquet = any(path.rglob("*.parquet"))
        options: dict[str, Any] = {} if parquet else {"labelled": False}
        return read_images(path.absolute(), split=split, **options).head(limit)
    if split is not None:
        raise ValueError(f"{path} is one picture, which has no splits: leave split out")
    pixels = read_image(path).astype(np.uint8, copy=False)
    single = Images.of(pixels[None], name=str(path))
    return Images(name=single.name, store=single.store, keys=[path.name])


def _speaker(network: Any, model: str, captions: Sequence[str]) -> Callable[[Tensor], list[tuple[str, float]]]:
    """What gives the likeliest label of each picture, and its probability."""
    if network.config.model_type != "clip":
        if captions:
            raise ValueError(f"{model} has labels of its own: leave the captions out")
        if not hasattr(network, "classifier"):
            raise ValueError(f"{model} has no classifier, and so nothing to say of a picture")
        labels = network.config.id2label
        return lambda pixels: _likeliest(network(pixel_values=pixels).logits, labels)
    if len(captions) < 2:
        raise ValueError(f"{model} is a CLIP and chooses among captions: give two or more")
    if twice := [c for c, n in Counter(captions).items() if n > 1]:
        raise ValueError(f"caption '{twice[0]}' is given twice: each once, since their probabilities add up to one")
    from rankwise.models import load_tokenizer

    words = load_tokenizer(model)(list(captions), padding=True, return_tensors="pt")
    lengths, most = words["attention_mask"].sum(1), network.config.text_config.max_position_embeddings
    if (longest := int(lengths.max())) > most:
        said = captions[int(lengths.argmax())]
        raise ValueError(f"caption '{said[:40]}…' has {longest} tokens; {model} reads up to {most}")
    given = {k: words[k].to(network.device) for k in ("input_ids", "attention_mask")}
    return lambda pixels: _likeliest(network(pixel_values=pixels, **given).logits_per_image, dict(enumerate(captions)))


def _likeliest(logits: Tensor, labels: dict[int, str]) -> list[tuple[str, float]]:
    if not logits.isfinite().all():
        raise ValueError("the model says nan or inf of a picture: are its weights whole?")
    p, which = logits.softmax(-1).max(-1)
    return [(labels[int(i)], float(x)) for x, i in zip(p, which, strict=True)]


def _seen(
    names: Sequence[str], before: list, after: list, pruned: TokenPruning, batch: Tensor
) -> list[Pictured]:  # fmt: skip
    layers = pruned.tokens(batch)
    return [
        Pictured(
            image=name,
            before=before[i][0],
            after=after[i][0],
            p_before=before[i][1],
            p_after=after[i][1],
            kept={k.layer: k.patches[i].tolist() for k in layers},
            similar={k.layer: [] if k.similar is None else sorted(k.similar[i].tolist()) for k in layers},
        )
        for i, name in enumerate(names)
    ]


def _shown(batch: Tensor, processor: Any) -> list[NDArray[np.float32]]:
    """Pixels as the model sees them, but for the shift and scale of colours."""
    mean, std = (np.asarray(getattr(processor, f"image_{n}", None) or d) for n, d in (("mean", 0.0), ("std", 1.0)))
    pixels = batch.permute(0, 2, 3, 1).float().cpu().numpy()
    return list(np.clip(pixels * std + mean if getattr(processor, "do_normalize", True) else pixels, 0, 1))


def _grid(pruned: TokenPruning, batch: Tensor) -> tuple[int, int]:
    """Rows and columns of patches."""
    tall, wide = batch.shape[-2:]
    rows = round((pruned.tower.shape.patches * tall / wide) ** 0.5)
    return rows, pruned.tower.shape.patches // rows
