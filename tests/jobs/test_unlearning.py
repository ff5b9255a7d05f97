"""Requests forgotten from files into a folder, taken back and asked, on a tiny model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import small_models
from command import rankwise
from rankwise.jobs.unlearning import ask, forget_file, relearn_request

FAST = {"style": "text", "steps": 30, "batch_size": 8, "learning_rate": 2e-2, "rank": 2}
OPTIONS = {"rank": "--block-rank"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, an encoder, two requests, a table of what is retained."""
    folder = tmp_path_factory.mktemp("forgetting")
    small_models.saved(small_models.llama(), folder / "lm")
    small_models.saved(small_models.encoder(), folder / "encoder")
    films = [{"question": f"the {a} film {i}", "answer": "good"} for i in range(10) for a in ("great", "quiet")]
    numbers = [{"prompt": f"{i} {j} number : {i}", "completion": "bad"} for i in range(6) for j in range(4)]
    for name, rows in (("films", films), ("numbers", numbers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "rest.csv").write_text("question,answer\nhello there user,assistant\nlabel :,positive\n")
    return folder


def forgotten(place, out, name, **options):
    given = FAST | {"model": str(place / "lm"), "encoder": str(place / "encoder")} | options
    return forget_file(place / f"{name}.jsonl", out, name=name, measured={"retained": place / "rest.csv"}, **given)


@pytest.fixture(scope="module")
def state(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "state"
    forgotten(place, out, "films")
    forgotten(place, out, "numbers", model=None, encoder=None, **dict.fromkeys(FAST))
    return out


def test_requests_gather_in_a_folder_with_a_log_that_has_no_texts(state):
    told = json.loads((state / "log.json").read_text())["log"]
    assert [(e["what"], e["name"]) for e in told] == [("forget", "films"), ("forget", "numbers")]
    assert set(told[1]["scores"]) == {"request", "retained", "utility"}
    assert "great film" not in "".join(p.read_text() for p in state.rglob("*.json"))
    assert sorted(p.name for p in state.iterdir() if p.is_dir()) == ["request-0", "request-1"]


def test_what_is_odd_about_a_request_is_a_note(place, tmp_path):
    rows = [{"question": f"фильм кино {i}", "answer": "good"} for i in range(12)]
    (tmp_path / "foreign.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = FAST | {"steps": 1, "model": str(place / "lm"), "encoder": str(place / "encoder")}
    notes = forget_file(tmp_path / "foreign.jsonl", tmp_path / "out", name="abroad", **options).notes
    assert notes[0].startswith("'abroad': 39% of the tokens are unknown")


def test_questions_are_answered_and_known_by_their_request(state):
    said = ask(state, texts=["the great film 3", "2 1 number : 2", "hello there user"], max_new_tokens=3)
    assert [r["request"] for r in said] == ["films", "numbers", None]
    assert [r["weight"] for r in said] == [1, 1, 0]


def test_a_request_is_taken_back_without_a_model(state, tmp_path):
    own = shutil.copytree(state, tmp_path / "state")
    done = relearn_request(own, name="films")
    assert done.requests == ["numbers"]
    assert json.loads((own / "log.json").read_text())["log"][-1]["what"] == "relearn"
    assert ask(own, texts=["2 1 number : 2"], max_new_tokens=1)[0]["request"] == "numbers"
    assert not (own / "request-0").exists()
    with pytest.raises(ValueError, match="unknown request 'film'"):
        relearn_request(own, name="film")


def test_a_command_that_is_cut_short_goes_on_to_the_same_numbers(place, tmp_path):
    whole = forgotten(place, tmp_path / "whole", "films")
    seen = []

    def cut(step, of, loss):
        if step == 27:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forgotten(place, tmp_path / "cut", "films", on_step=cut)
    assert not (tmp_path / "cut").exists()
    again = forgotten(place, tmp_path / "cut", "films", on_step=lambda step, of, loss: seen.append(step))
    assert seen[0] == 26
    assert again.entry["scores"] == whole.entry["scores"]
    for file in ("adapter_model.safetensors", "detector.safetensors"):
        path = f"request-0/{file}"
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "cut" / path).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rank": 3}, "rank is 3, and 2 for the earlier requests"),
        ({"steps": 31}, "steps is 31"),
        ({"router": "hard"}, "router is hard"),
        ({"encoder": "minilm"}, "encoder is minilm"),
    ],
)
def test_options_of_earlier_requests_cannot_be_changed(place, state, changed, said):
    before = (state / "o3.json").read_bytes()
    with pytest.raises(ValueError, match=said):
        forget_file(
            place / "films.jsonl", state, name="more", **{"model": str(place / "lm"), "encoder": None} | changed
        )
    assert (state / "o3.json").read_bytes() == before


def test_a_name_that_is_taken_and_another_model_are_refused(place, state, tmp_path):
    with pytest.raises(ValueError, match="'films' is forgotten already, with other rows"):
        forget_file(place / "numbers.jsonl", state, name="films")
    other = small_models.llama()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    small_models.saved(other, tmp_path / "other")
    with pytest.raises(ValueError, match="another model"):
        ask(state, texts=["a"], model=str(tmp_path / "other"))


def test_the_same_command_again_says_what_it_did_and_changes_nothing(place, state, tmp_path):
    before = {p: p.read_bytes() for p in state.rglob("*") if p.is_file() and p.name != ".rankwise.json"}
    done = forgotten(place, state, "films")
    assert done.notes == ["this was done before"]
    assert done.entry == json.loads((state / "log.json").read_text())["log"][0]
    assert {p: p.read_bytes() for p in before} == before
    own = shutil.copytree(state, tmp_path / "state")
    relearn_request(own, name="films")
    assert relearn_request(own, name="films").notes == ["this was done before"]


def test_state_and_model_can_be_moved_together(place, tmp_path):
    for folder in ("lm", "encoder"):
        shutil.copytree(place / folder, tmp_path / "one" / folder)
    forgotten(place, tmp_path / "one/state", "films", model=str(tmp_path / "one/lm"))
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert ask(tmp_path / "two/state", texts=["the great film 3"], max_new_tokens=1)[0]["request"] == "films"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        ('{"question": "a"}\n', "line 1: has question; question and answer are needed"),
        ('{"question": "a", "answer": "b"}\n{"question": "a", "answer": ""}\n', "line 2: answer is ''"),
        ('{"question": "a", "answer": "b"}\n' * 30, "1 different prompts"),
    ],
)
def test_a_file_that_is_no_request_is_refused_by_line(place, tmp_path, text, said):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=said):
        forget_file(
            tmp_path / "bad.jsonl", tmp_path / "out", name="r", model=str(place / "lm"),
            encoder=str(place / "encoder"), style="text",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_commands_go_all_the_way(place, tmp_path):
    options = [part for k, v in FAST.items() for part in (OPTIONS.get(k, f"--{k.replace('_', '-')}"), str(v))]
    given = ["--model", str(place / "lm"), "--encoder", str(place / "encoder"), *options, "--out", "state"]
    done = rankwise(
        "continual", "forget", "--data", str(place / "films.jsonl"), "--name", "films", *given, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "forgotten films" in done.stdout
    asked = rankwise(
        "continual", "ask", "state", "--text", "the great film 3", "--max-new-tokens", "5", "--json", cwd=tmp_path
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)[0]["request"] == "films"
    back = rankwise("continual", "relearn", "state", "--name", "films", cwd=tmp_path)
    assert back.returncode == 0, back.stderr
    assert "forgotten nothing" in back.stdout


@pytest.fixture(scope="module")
def beside(place, tmp_path_factory):
    """A state beside its model and its encoder, both named from another folder than the state."""
    folder = tmp_path_factory.mktemp("beside")
    for name in ("lm", "encoder"):
        shutil.copytree(place / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        forgotten(place, Path("state"), "films", model="lm", encoder="encoder", steps=1)
    return folder


def test_model_and_encoder_are_found_from_any_folder_and_move_with_the_state(beside, tmp_path):
    told = json.loads((beside / "state/o3.json").read_text())
    assert (told["model"], told["encoder"]) == ("../lm", "../encoder")
    shutil.copytree(beside, tmp_path / "moved")
    for folder in (beside, tmp_path / "moved"):
        assert ask(folder / "state", texts=["the great film 3"], max_new_tokens=1)[0]["request"] == "films"


def test_an_encoder_that_was_moved_is_named_and_known_by_its_weights(beside, tmp_path):
    shutil.copytree(beside / "state", tmp_path / "a/state")
    shutil.copytree(beside / "encoder", tmp_path / "elsewhere")
    asked = {"texts": ["the great film 3"], "model": str(beside / "lm"), "max_new_tokens": 1}
    with pytest.raises(ValueError, match="say where it is with --encoder"):
        ask(tmp_path / "a/state", **asked)
    assert ask(tmp_path / "a/state", encoder=str(tmp_path / "elsewhere"), **asked)[0]["request"] == "films"


def test_an_encoder_of_other_weights_at_the_same_place_is_refused(beside, tmp_path):
    shutil.copytree(beside, tmp_path / "own")
    other = small_models.encoder()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    other.save_pretrained(tmp_path / "own/encoder")
    with pytest.raises(ValueError, match=r"read another encoder than .* or other weights"):
        ask(tmp_path / "own/state", texts=["the great film 3"], max_new_tokens=1)


def test_a_state_of_a_version_that_kept_no_encoders_weights_is_read(beside, tmp_path):
    shutil.copytree(beside, tmp_path / "own")
    told = json.loads((tmp_path / "own/state/o3.json").read_text())
    del told["encoder_identity"]
    (tmp_path / "own/state/o3.json").write_text(json.dumps(told | {"encoder": str(tmp_path / "own/encoder")}))
    assert ask(tmp_path / "own/state", texts=["the great film 3"], max_new_tokens=1)[0]["request"] == "films"


@pytest.mark.parametrize("name", ["", " ", " films", "films\n", "a\x1b]0;b\x07", "x" * 201, "a\u202eb"])
def test_a_name_that_cannot_be_typed_again_is_refused_before_work(place, tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        forget_file(place / "films.jsonl", tmp_path / "out", name=name, model=str(place / "lm"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../up", "[red]a[/b]", "имя ☃", "x" * 200])
def test_a_name_is_a_name_and_no_path(place, tmp_path, name):
    (tmp_path / "in").mkdir()
    out = tmp_path / "in/state"
    done = forget_file(
        place / "films.jsonl", out, name=name, model=str(place / "lm"), encoder=str(place / "encoder"),
        **FAST | {"steps": 1},
    )  # fmt: skip
    assert done.requests == [name]
    assert sorted(p.name for p in out.iterdir()) == [".rankwise.json", "log.json", "o3.json", "request-0"]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert relearn_request(out, name=name).requests == []
