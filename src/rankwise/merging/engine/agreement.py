"""Configurations: where models that are to be merged disagree in what they compute, and what the result's says.

Weights of one shape can mean different things. Heads, activation and model type decide what a number of a matrix is
for: models that differ there are refused. Rotary embeddings, epsilons, windows and the like shape the function around
the weights: those are noted, and the lead's (the base, or the first model) are written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.merging.engine.sources import Source, language

_MEANS = re.compile(
    r"(^|\.)(model_type|num_attention_heads|num_key_value_heads|n_head|n_kv_head|num_heads|head_dim|encoder_attention_heads"
    r"|decoder_attention_heads|hidden_act|hidden_activation|activation_function|feed_forward_proj|num_experts_per_tok"
    r"|position_embedding_type|is_encoder_decoder)$"
)
# what says how a model was made, is trained, is stored or answers, not what it computes
_ASIDE = re.compile(
    r"(^|\.)(_\w*|transformers_version|torch_dtype|dtype|architectures|use_cache|vocab_size|id2label|label2id|num_labels"
    r"|\w*token_ids?|\w*token_index|\w*dropout\w*|\w*pdrop|\w*layerdrop\w*|\w*drop_path\w*|initializer_\w*|\w*init_std"
    r"|init_\w+|output_\w+|return_\w+|torchscript|problem_type|tie_\w+|task_specific_params|gradient_checkpointing"
    r"|auto_map|finetuning_task|chunk_size_feed_forward|pretraining_tp|unsloth_\w+|name_or_path|classifier_\w+"
    r"|(begin_)?suppress_tokens|forced_decoder_ids|mask_(time|feature)_\w+|apply_spec_augment|ctc_\w+|\w*aux_loss_coef"
    r"|\w*jitter\w*|attn_implementation|max_length|use_bfloat16|is_decoder)($|\.)"
)
_LARGEST = 1_000_000  # of a number of layers, heads, labels: more would take a machine's memory to unfold
_DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_BY_INDEX = re.compile(r"_(layers|idxs|indices|indexes)$")


def agree(sources: Sequence[Source], lead: Source) -> list[str]:
    """Notes on what the configurations differ in.

    Raises
    ------
    ValueError
        They differ in what the weights mean: all of it, in one message.
    """
    known = {s.label: _flat(full(s.config, s.label)) for s in sources if s.config}
    first = known.get(lead.label)
    if first is None:
        return []
    wrong, noted = [], []
    for label, config in known.items():
        for key in sorted({*first, *config}):
            mine, theirs = first.get(key), config.get(key)
            if mine != theirs and not _ASIDE.search(key):
                said = f"{key} ({lead.label}: {_short(mine)}, {label}: {_short(theirs)})"
                (wrong if _MEANS.search(key) else noted).append(said)
    if wrong:
        raise ValueError(f"the models do not mean the same by their weights: {'; '.join(wrong)}")
    more = f" and {len(noted) - 8} more" if len(noted) > 8 else ""
    return [f"the configurations differ in {', '.join(noted[:8])}{more}; {lead.label}'s is written"] if noted else []


def full(config: dict[str, Any], label: str) -> dict[str, Any]:
    """A configuration with the defaults that `transformers` fills in, where it knows the model's type.

    Raises
    ------
    ValueError
        Numbers that nothing can have so many of, or that the model's type does not take.
    """
    for key, value in _flat(config).items():
        if type(value) is int and value > _LARGEST and re.search(r"(^|\.)(n_|num_)|layer", key):
            raise ValueError(f"{label}: config.json says {key}={value:,}")
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return config
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(config)).to_dict()
    except Exception as error:  # whatever a configuration class makes of a file that does not fit it
        raise ValueError(f"{label}: config.json is no configuration of a {kind}: {str(error)[:200]}") from error


def restacked(lead: Source, layers: Sequence[tuple[Source, int]], stack: str) -> dict[str, Any]:
    """The lead's configuration, for a model of other layers.

    Its number of layers, each list with an entry a layer, and lists of layers by number follow.

    Parameters
    ----------
    lead : Source
        The model whose configuration is the result's.
    layers : sequence of (Source, int)
        For each layer of the result, the layer whose place it takes.
    stack : str
        What the names of layers begin with.

    Raises
    ------
    ValueError
        The configuration does not name the lead's number of layers, or says the kind of each layer by a rule that the
        new order breaks.
    """
    out = {k: dict(v) if isinstance(v, dict) else v for k, v in lead.config.items()}
    part, depth = language(out), lead.stacks[stack]
    key = next((k for k in _DEPTH if part.get(k) == depth), None)
    if key is None:
        raise ValueError(
            f"{lead.label}: config.json does not say that there are {depth} layers: slices are not written"
        )
    part[key] = len(layers)
    own = {s.label: per_layer(s, stack) for s, _ in layers}
    numbered = _numbered(language(full(lead.config, lead.label)), depth)
    said = [k for k in per_layer(lead, stack) if all(k in o for o in own.values())]
    for k in said:
        values = [own[s.label][k][i] for s, i in layers]
        part[k] = [j for j, among in enumerate(values) if among] if k in numbered else values
    again = language(full(out, lead.label))
    if broken := [k for k in said if again.get(k) != part[k]]:
        raise ValueError(f"{lead.label}: {broken[0]} follows a rule of the architecture that slices would break")
    return out


def per_layer(source: Source, stack: str) -> dict[str, list[Any]]:
    """What a source's configuration says of every layer by its own: lists with an entry a layer, and of lists of layers
    by number whether each is among them."""
    config, depth = language(full(source.config, source.label)), source.stacks[stack]
    numbered = _numbered(config, depth)
    lists = {k: v for k, v in config.items() if isinstance(v, list) and len(v) == depth and not _ASIDE.search(k)}
    return lists | {k: [i in config[k] for i in range(depth)] for k in numbered}


def _numbered(config: Mapping[str, Any], depth: int) -> list[str]:
    """Settings that list some layers by their numbers."""
    lists = {k: v for k, v in config.items() if _BY_INDEX.search(k) and isinstance(v, list)}
    return [
        k
        for k, v in lists.items()
        if all(type(x) is int and 0 <= x < depth for x in v) and (len(v) != depth or v == list(range(depth)))
    ]


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
