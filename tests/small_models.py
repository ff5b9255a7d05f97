"""Small random models with the shapes that matter: a BERT classifier, a Llama decoder, a GPT-2, ViTs, a CLIP."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)


def bert(layers=2, hidden=16):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return BertForSequenceClassification(config).eval()


def encoder():
    """A BERT without a head, with the dropout that it has by default."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    return BertModel(config)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return GPT2LMHeadModel(config).eval()


def whisper(layers=2):
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=200,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return WhisperForConditionalGeneration(config).eval()


SEEING = {
    "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 4,
}  # fmt: skip


def vit(layers=4, **changes):
    """An image classifier that sees 64 patches, whose attention is far from uniform."""
    torch.manual_seed(0)
    config = ViTConfig(num_hidden_layers=layers, num_labels=5, initializer_range=0.3, **(SEEING | changes))
    return ViTForImageClassification(config).eval()


def deit(layers=4, **changes):
    """As `vit`, with a distillation token."""
    torch.manual_seed(0)
    config = DeiTConfig(num_hidden_layers=layers, num_labels=5, initializer_range=0.3, **(SEEING | changes))
    return DeiTForImageClassification(config).eval()


def clip(layers=4, **changes):
    """Two towers, of images and of words."""
    torch.manual_seed(0)
    words = {
        "vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32,
        "max_position_embeddings": 16, "bos_token_id": 47, "eos_token_id": 48, "pad_token_id": 49,
    }  # fmt: skip
    sees = SEEING | {"num_hidden_layers": layers, "initializer_factor": 3.0} | changes
    return CLIPModel(CLIPConfig(text_config=words, vision_config=sees, projection_dim=8)).eval()


def saved_with_processor(model, folder):
    """An image model as a folder that transformers loads, with how its images are prepared."""
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

    kind = CLIPImageProcessorPil if model.config.model_type == "clip" else ViTImageProcessorPil
    side = {"height": SEEING["image_size"], "width": SEEING["image_size"]}
    model.save_pretrained(folder)
    kind(size=side, crop_size=side).save_pretrained(folder)
    return folder


def randomise(peft_model, scale=0.3, seed=3):
    """Give every trainable adapter tensor random values, so that the adapter does something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if p.requires_grad and not any(h in name for h in ("classifier", "score")):
                p.copy_(torch.randn(p.shape, generator=g) * scale)
    return peft_model


MAKERS = {"bert": bert, "llama": llama, "gpt2": gpt2}

_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] user assistant great awful film number fine poor good bad the a quiet triumph of warmth "
    "dull hello there 0 1 2 3 4 5 6 7 8 9 : positive negative label"
)
WORDS = _WORDS.split()


def saved(model, folder):
    """The model as a folder that transformers loads, with a tokenizer of single words and a chat template."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    if model.config.model_type == "bert":
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
