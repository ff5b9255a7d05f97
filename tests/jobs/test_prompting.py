"""What a file says is asked about a question."""

import pytest

from rankwise.jobs.prompting import read_prompts
from rankwise.prompting.answers import AnswerPrompts


def test_what_a_file_does_not_say_is_as_usual(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text('incorrect: "Q: {question} Wrong:"\nverdicts: [right, wrong]\n')
    found = read_prompts(path, "text")
    usual = AnswerPrompts.usual("text")
    assert (found.incorrect, found.verdicts) == ("Q: {question} Wrong:", ("right", "wrong"))
    assert (found.correct, found.plain, found.judge) == (usual.correct, usual.plain, usual.judge)
    assert read_prompts(path, "chat").correct == AnswerPrompts().correct


@pytest.mark.parametrize(("text", "said"), [
    ("wrong: x", "did you mean|unknown"),
    ("[]", "a mapping with any of correct"),
    ("verdicts: [Yes, No]", r"prompts.yaml: verdicts=\[True, False\]"),
    ("judge: really?", r"prompts.yaml: judge"),
])  # fmt: skip
def test_a_file_that_says_something_else_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_prompts(path, "chat")
