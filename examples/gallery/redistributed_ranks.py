"""In which layers of MiniLM do movie reviews vary most? EVA gives them the ranks; LoRA would give 8 to each."""

from pathlib import Path

from rankwise.data import sentiment
from rankwise.models import load, load_tokenizer
from rankwise.report.plots.shared import heat_maps, save
from rankwise.tuning import EvaConfig, initialize

texts = sentiment("movies").split().train.head(512).texts
tokenizer = load_tokenizer("minilm")
batches = [tokenizer(texts[i : i + 32], padding=True, return_tensors="pt") for i in range(0, len(texts), 32)]
model = initialize(load("minilm"), batches, EvaConfig(r=8, task_type="SEQ_CLS"))
ranks = {name: len(layer.lora_A["default"].weight) for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
save(heat_maps({"EVA's ranks": ranks}, label="rank"), Path("redistributed_ranks.png"))
