"""What lies beside a model's weights: configuration, tokenizer, processors, pooling; and what a merge says of itself.

Copied are files that loading needs, by their names, from the lead (the base, or the first model), and only files that
really lie in its folder: a link to somewhere else could carry anything into a folder that is made to be published.
Code is not copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rankwise.files import content_of, write_json, write_text
from rankwise.merging.engine.agreement import restacked
from rankwise.merging.engine.slices import Stacked
from rankwise.merging.engine.sources import Source, language
from rankwise.merging.engine.templates import TEMPLATES, most_common
from rankwise.merging.engine.vocabulary import Vocabulary, tokenizer_of
from rankwise.models.names import check_inside
from rankwise.reading import read_json

if TYPE_CHECKING:
    from rankwise.merging.engine.run import Merge

_TOKENIZER = (
    "tokenizer*", "special_tokens*", "vocab*", "merges*", "added_tokens*", "chat_template*", "*.model", "*.tiktoken",
    "normalizer.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
_OTHERS = (
    "generation_config*.json", "*preprocessor_config.json", "processor_config.json", "image_processor*.json",
    "feature_extractor*.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
)  # fmt: skip
_TEMPLATES = ("chat_template*", "additional_chat_templates/*")


def to_copy(lead: Source, others: Sequence[Source], *, tokenizer: bool, template: bool) -> list[Path]:
    """Files of the lead's folder that go with the result.

    Parameters
    ----------
    lead : Source
        The model whose files are the result's.
    others : sequence of Source
        Modules with weights of their own (a dense layer behind the pooling) have to be the same in all.
    tokenizer, template : bool
        Whether its tokenizer, and its chat template, go along.

    Raises
    ------
    ValueError
        A file is a link to outside the model, or a module's weights differ between the models.
    """
    if lead.folder is None:
        return []
    kept = [*_OTHERS, *(_TOKENIZER if tokenizer else ())]
    left = () if template else _TEMPLATES
    named = {p for k in kept for p in lead.folder.glob(k)} - {p for k in left for p in lead.folder.glob(k)}
    inside = {p for module in _modules(lead.folder) for p in module.rglob("*")}
    found = sorted(p for p in named | inside if p.is_file())
    for path in found:
        check_inside(path, lead.folder)
        if path.suffix in (".safetensors", ".bin"):
            _check_same(path, lead, others)
    return found


def _modules(folder: Path) -> list[Path]:
    """Folders that ``modules.json`` of sentence-transformers names, but for the model itself."""
    if not (folder / "modules.json").is_file():
        return []
    paths = [m.get("path") if isinstance(m, dict) else None for m in read_json(folder / "modules.json", kind=list)]
    if any(not isinstance(p, str) or Path(p).name != p for p in paths):
        raise ValueError(f"{folder / 'modules.json'} names paths outside its folder")
    return [folder / str(p) for p in paths if p]


def _check_same(path: Path, lead: Source, others: Sequence[Source]) -> None:
    name = path.relative_to(str(lead.folder))
    for other in (s for s in others if s.folder not in (None, lead.folder)):
        there = Path(str(other.folder)) / name
        if not there.is_file() or content_of(there) != content_of(path):
            raise ValueError(
                f"{name} holds weights that are not merged, and {other.label} has others: merge the encoders alone, "
                "from folders without it"
            )


def chat_template(asked: str, sources: Sequence[Source], lead: Source) -> str:
    """The template that ``chat_template`` asks for.

    Raises
    ------
    ValueError
        The lead has no tokenizer that it would belong to; ``auto``, where no model has a template.
    """
    tokenizer_of(lead)
    if asked != "auto":
        return TEMPLATES.get(asked, asked)
    with_tokenizer = [s for s in sources if s.folder is not None and any(s.folder.glob("tokenizer*"))]
    templates = [tokenizer_of(s).chat_template for s in with_tokenizer]
    found = most_common(t.get("default") if isinstance(t, dict) else t for t in templates)
    if found is None:
        raise ValueError("chat_template: auto, but none of the models has one")
    return found


def configuration(
    lead: Source,
    *,
    dtype: str | None,
    stacked: Stacked | None,
    vocabulary: Vocabulary | None,
    untied: bool,
) -> dict[str, Any]:
    """The result's ``config.json``; empty where the lead has none.

    Parameters
    ----------
    lead : Source
        The model whose configuration is the result's.
    dtype : str, optional
        The dtype of the weights that are written, if not the lead's.
    stacked : Stacked, optional
        The layers, where the merge has ``slices``.
    vocabulary : Vocabulary, optional
        The tokens of the result, where they are joined.
    untied : bool
        The result has an output layer of its own.
    """
    if not lead.config:
        return {}
    check_inside(Path(str(lead.folder)) / "config.json", Path(str(lead.folder)))
    config = dict(lead.config) if stacked is None else restacked(lead, stacked.layers, stacked.stack)
    if dtype is not None:
        config.pop("torch_dtype", None)
        config = _replaced(_replaced(config, "torch_dtype", dtype), "dtype", dtype) | {"dtype": dtype}
    if vocabulary is not None:
        config = vocabulary.renumbered(_replaced(config, "vocab_size", vocabulary.size, old=lead.rows))
    if untied:
        part = language(config)
        own = {k: {**part, "tie_word_embeddings": False} for k, v in config.items() if v is part}
        config = config | own | {"tie_word_embeddings": False}
    return config


def _replaced(config: Mapping[str, Any], key: str, value: object, old: object = None) -> dict[str, Any]:
    """``key`` set anew wherever a configuration or a part of it has it (with the value ``old``, if that is given)."""
    return {
        k: _replaced(v, key, value, old) if isinstance(v, dict) else value if k == key and old in (None, v) else v
        for k, v in config.items()
    }


def write_beside(ready: Merge, draft: Path) -> None:
    """Configuration, tokenizer, model card, recipe and report beside the weights."""
    if ready.configuration:
        write_json(draft / "config.json", ready.configuration)
    for path in ready.files:
        target = draft / path.relative_to(str(ready.lead.folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        if ready.vocabulary is not None and path.name.startswith("generation_config"):
            write_json(target, ready.vocabulary.renumbered(read_json(path)))
        elif ready.template is not None and path.name == "tokenizer_config.json":
            write_json(target, {k: v for k, v in read_json(path).items() if k != "chat_template"})
        else:
            shutil.copyfile(path, target)
    if ready.vocabulary is not None:
        tokenizer = ready.vocabulary.tokenizer
        tokenizer.chat_template = ready.template or tokenizer.chat_template
        tokenizer.save_pretrained(draft)
    elif ready.template is not None:
        write_text(draft / "chat_template.jinja", ready.template)
    recipe = yaml.safe_dump(ready.config.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    write_text(draft / "merge.yaml", recipe)
    write_text(draft / "README.md", _card(ready, recipe))
    write_json(draft / "merge.json", report(ready))


def report(ready: Merge, workers: int | None = None) -> dict[str, Any]:
    """What went into every tensor, for JSON; memory for so many tensors at once."""
    return {
        "method": ready.method.name,
        **ready.cost(workers),
        "notes": ready.notes,
        "models": [s.label for s in ready.sources.values()],
        "merged": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "dtype": str(t.dtype).removeprefix("torch."),
                **({"copied_from": t.inputs[0][0].label} if t.copied else {"options": t.options}),
            }
            for t in ready.tensors
        ],
    }


def _card(ready: Merge, recipe: str) -> str:
    newline, models = "\n", [f"* {s.label}" for s in ready.sources.values()]
    method = ready.method
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "rankwise", method.name]}
    names = [s.partition("+")[0].partition("@")[0] for s in ready.sources]
    hub = list(dict.fromkeys(n for n in names if n.count("/") == 1 and not Path(n).exists()))
    if hub:
        front["base_model"] = hub
    return f"""---
{yaml.safe_dump(front, sort_keys=False).rstrip()}
---

# Merged by {method.title}

{len(ready.tensors)} tensors of {len(models)} models, merged by {method.title} ({method.paper}) with
[rankwise](https://pypi.org/project/rankwise/).

## Models

{newline.join(models)}

## Recipe

```yaml
{recipe.rstrip()}
```
"""
