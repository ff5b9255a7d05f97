"""Chat templates by name: what they render, beside mergekit's files."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

from rankwise.merging.engine.templates import TEMPLATES, most_common

TURNS = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("user", "How\nso?"))]
CHATS = [TURNS, [{"role": "system", "content": "Be brief."}, *TURNS], TURNS[:2]]
RENDERED = {
    "alpaca": "### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nHow\nso?\n\n### Response:\n",
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHow\nso?"
    "<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|user|]How\nso?\n[|assistant|]",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    "\n\nHello<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHow\nso?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Hi [/INST] Hello</s> [INST] How\nso? [/INST]",
}


def render(template, messages, prompt):
    compiled = _compile_jinja_template(template)
    return compiled.render(messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_named_template_renders_the_format_it_is_named_after(name):
    assert render(TEMPLATES[name], TURNS, True) == RENDERED[name]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_named_template_is_mergekits_but_for_white_space_between_turns(name):
    spec = find_spec("mergekit")
    if spec is None or spec.origin is None:
        pytest.skip("mergekit is not installed")
    folder = Path(spec.origin).parent / "_data" / "chat_templates"
    assert {p.stem for p in folder.glob("*.jinja")} == set(TEMPLATES)
    theirs = (folder / f"{name}.jinja").read_text()
    for messages in CHATS:
        for prompt in (False, True):
            if name == "alpaca" and prompt and messages[-1]["role"] == "assistant":
                continue  # mergekit's gives no prompt there
            mine, other = (render(t, messages, prompt) for t in (TEMPLATES[name], theirs))
            assert "".join(mine.split()) == "".join(other.split())
            if name in ("chatml", "mistral"):
                assert mine == other


def test_mistrals_roles_take_turns():
    with pytest.raises(TemplateError, match="take turns"):
        render(TEMPLATES["mistral"], TURNS[1:], False)


def test_most_models_template_is_chosen_and_of_equals_the_first():
    assert most_common(["a", None, "b ", "b", "a"]) == "a"
    assert most_common(["a", "b", " b"]) == "b"
    assert most_common([None]) is None
