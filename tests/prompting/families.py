"""Every causal family of `transformers`, small and random, and a tokenizer whose words are numbers."""

import inspect

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WORDS = 99
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window", "local_attention"), 7),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    "vocab_size": WORDS, "num_key_value_heads": 2, "head_dim": 8, "encoder_attention_heads": 4, "dff": 64,
    "num_experts_per_tok": 2, "initializer_range": 0.4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# where a family needs more than that, or its tiny version computes in a chaotic way
OTHER = {
    "bloom": {"num_attention_heads": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "falcon": {"head_dim": None, "sliding_window": None},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "initializer_range": 0.1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 7},
    "zamba": {"num_hidden_layers": 4, "initializer_range": 0.05},
    "zamba2": {"num_hidden_layers": 8, "initializer_range": 0.05, "chunk_size": 8},
    "nemotron_h": {"chunk_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "hrm_text": {"initializer_range": 0.05},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "mamba": {"num_heads": None},
}
DROPPED = (
    (), ("head_dim",), ("num_key_value_heads",), ("head_dim", "num_key_value_heads"), ("embedding_size",),
    ("num_layers", "num_hidden_layers"), ("sliding_window",), ("sliding_window", "head_dim"),
)  # fmt: skip


def family(name):
    """A random model of at most 5 million parameters."""
    cls, error = CONFIG_MAPPING[name], None
    try:
        plain = cls()
    except Exception as caught:  # a part of another model, which it has to be told
        raise ValueError(f"{name} has no configuration of its own: {caught}") from caught
    known = {*inspect.signature(cls.__init__).parameters, *dir(plain), *OTHER.get(name, {})}
    settings = {k: v for k, v in {**SMALL, **OTHER.get(name, {})}.items() if k in known and v is not None}
    for left_out in DROPPED:
        try:
            config = cls(**{k: v for k, v in settings.items() if k not in left_out})
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config)
            if sum(p.numel() for p in empty.parameters()) > 5e6:
                raise ValueError("too large")
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
            with torch.no_grad():
                model(input_ids=torch.arange(3, 13)[None])
            return model
        except Exception as caught:  # a family has its own demands: the next set of options is tried
            error = error or caught
    raise ValueError(f"{name} cannot be built small: {error}")


def numbers():
    """Words 3 to 98 are the tokens; no token is put before a text, and there is none to pad with."""
    made = Tokenizer(
        models.WordLevel({"?": 0, "-": 1, "</s>": 2, **{str(i): i for i in range(3, WORDS)}}, unk_token="?")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def looped(model, ids, scored):
    """The last ``scored`` tokens' log-probabilities, by one plain pass over this sequence alone."""
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(logp[t - 1, ids[t]]) for t in range(len(ids) - scored, len(ids))]
