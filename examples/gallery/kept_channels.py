"""Which channels of the keys does each block of SmolLM2 keep for a paper, when 40 % of them leave the cache?"""

from pathlib import Path

import torch

from rankwise.compression import ThinKCache, thinking
from rankwise.data import papers
from rankwise.models import load, load_tokenizer
from rankwise.report.plots.compression import kept_channels
from rankwise.report.plots.shared import save

model, tokenizer = load("smollm2"), load_tokenizer("smollm2")
ids = tokenizer(papers().texts[0], return_tensors="pt")["input_ids"][:, :512]
cache = ThinKCache(model.config, ratio=0.4)
with thinking(model), torch.no_grad():
    model(ids, cache=cache)
save(kept_channels([layer.channels[0] for layer in cache.layers], channels=64), Path("kept_channels.png"))
