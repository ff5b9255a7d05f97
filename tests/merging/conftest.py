"""Checkpoints and mergekit's merges of them, made once a session."""

import re
import subprocess
import sys

import pytest
import torch
import yaml

from small_checkpoints import WORDS, moved, same_as_mergekit, tiny, with_words


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A base and three experts on disk, sharded and not."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    base = tiny()
    base.save_pretrained(root / "base")
    for i in range(3):
        expert = tiny()
        expert.load_state_dict(base.state_dict())
        moved(expert, i).save_pretrained(root / f"e{i}", max_shard_size="40KB" if i else "5GB")
    return root


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A base and two experts with tokenizers of words that differ."""
    root = tmp_path_factory.mktemp("words")
    for i, (name, own) in enumerate(WORDS.items()):
        with_words(root / name, own, i)
    return root


@pytest.fixture(scope="session")
def mergekit(folders, words, tmp_path_factory):
    """All recipes through mergekit in one process (most of its time is its import): a folder each, and its defaults."""
    out = tmp_path_factory.mktemp("mergekit")
    for name, config in same_as_mergekit(folders, words).items():
        (out / f"{re.sub(r'[^a-z]+', '-', name)}.yaml").write_text(yaml.safe_dump(config))
    code = (
        "import json, sys, yaml\nfrom pathlib import Path\nfrom mergekit.config import MergeConfiguration\n"
        "from mergekit.merge import run_merge\nfrom mergekit.options import MergeOptions\n"
        "from mergekit.merge_methods.registry import registered_methods\n"
        "specs = {m.spec.name: {p.name: p.default for p in (*m.spec.shared_parameters, *m.spec.input_parameters)\n"
        "    if not p.required} for m in registered_methods()}\n"
        "Path(sys.argv[1], 'specs.json').write_text(json.dumps(specs))\n"
        "for p in sorted(Path(sys.argv[1]).glob('*.yaml')):\n"
        "    c = MergeConfiguration.model_validate(yaml.safe_load(p.read_text()))\n"
        "    run_merge(c, str(p.with_suffix('')), MergeOptions(copy_tokenizer=False))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out
