"""What is trained: a ViT that names the class, a CLIP that matches captions; 6 MB of float16 together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTForImageClassification

from rankwise.data.looks import NAMES, PLAIN, article, captions, in_looks
from rankwise.jobs.pretrain.training import SMOOTHING, normalised

PATCH = 4  # 64 patches of a 32 x 32 image
LEAST = 8  # pixels of a side: shifts by up to four pixels mirror the edges


def vit(classes: list[str], size: int) -> ViTForImageClassification:
    """An untrained classifier: 9 blocks of width 128, 1.50 million parameters for images of 32 x 32 pixels."""
    config = ViTConfig(
        image_size=size,
        patch_size=PATCH,
        hidden_size=128,
        num_hidden_layers=9,
        num_attention_heads=4,
        intermediate_size=384,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    return _eager(ViTForImageClassification(config))


def vit_loss(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, smoothed."""
    return F.cross_entropy(model(pixel_values=normalised(images)).logits.float(), labels, label_smoothing=SMOOTHING)


def clip(tokenizer: CLIPTokenizer, size: int) -> CLIPModel:
    """An untrained CLIP: a vision tower of 6 blocks of width 128, a text tower of 3 of width 96."""
    ids: dict[str, Any] = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3}
    vision = {"image_size": size, "patch_size": PATCH, "hidden_size": 128, "intermediate_size": 384}
    config = CLIPConfig(
        projection_dim=96,
        text_config={**text, **ids, "num_attention_heads": 3, "max_position_embeddings": 32, "projection_dim": 96},
        vision_config={**vision, "num_hidden_layers": 6, "num_attention_heads": 4, "projection_dim": 96},
    )
    return _eager(CLIPModel(config))


def caption_tokenizer(classes: list[str]) -> CLIPTokenizer:
    """A byte-level BPE of CLIP's kind that knows the captions' words whole and spells any other."""
    fresh: Any = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    clips = CLIPTokenizer().backend_tokenizer
    fresh.normalizer, fresh.pre_tokenizer = clips.normalizer, clips.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    fresh.train_from_iterator(_all_captions(classes), trainer)
    made = json.loads(fresh.to_str())["model"]
    vocabulary: dict[str, int] = made["vocab"]
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):  # every byte, as a word's last too
        vocabulary.setdefault(f"{byte}</w>", len(vocabulary))
    merges: Any = [tuple(m) for m in made["merges"]]  # pairs, as the tokenizers library has them
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)


def _all_captions(classes: Iterable[str]) -> list[str]:
    looks = [*PLAIN, *NAMES]
    return [f"{article(look)} photo of {article(name)}" for look in looks for name in classes]


class CaptionLoss:
    """CLIP's loss over the distinct captions of a batch: images that share one are all its own."""

    def __init__(self, tokenizer: CLIPTokenizer, classes: list[str]) -> None:
        self.tokenizer, self.classes = tokenizer, classes

    def __call__(self, model: Any, images: Tensor, labels: Tensor) -> Tensor:
        """Mean of the image-to-caption and the caption-to-image cross-entropy."""
        with torch.autocast(images.device.type, enabled=False):
            changed, looks = in_looks(images)
        said = captions(self.classes, looks, labels)
        distinct = list(dict.fromkeys(said))
        own = torch.tensor([distinct.index(s) for s in said], device=images.device)
        encoded = self.tokenizer(distinct, padding=True, return_tensors="pt").to(images.device)
        logits = model(pixel_values=normalised(changed), **encoded).logits_per_image.float()
        shares = F.one_hot(own, len(distinct)).float()
        to_caption = F.cross_entropy(logits, own, label_smoothing=SMOOTHING)
        to_image = F.cross_entropy(logits.T, (shares / shares.sum(0)).T)
        return (to_caption + to_image) / 2


def _eager(model: Any) -> Any:
    model.set_attn_implementation("eager")  # under bfloat16 autocast on a CPU much faster to train than fused attention
    return model


@torch.no_grad()
def accuracy(
    model: Any, images: Tensor, labels: Tensor, *, tokenizer: CLIPTokenizer | None = None, classes: Sequence[str] = ()
) -> float:
    """Per cent of images named right: by the classifier, or by the nearest of the captions "a photo of a ..."."""
    model.eval()
    options = {}
    if tokenizer is not None:
        options = tokenizer([f"a photo of {article(c)}" for c in classes], padding=True, return_tensors="pt").to(
            model.device
        )
    right = 0
    for start in range(0, len(labels), 500):
        pixels = normalised(images[start : start + 500].to(model.device).permute(0, 3, 1, 2).float() / 255)
        output = model(pixel_values=pixels, **options)
        logits = output.logits if tokenizer is None else output.logits_per_image
        right += int((logits.argmax(-1).cpu() == labels[start : start + 500]).sum())
    return 100 * right / len(labels)
