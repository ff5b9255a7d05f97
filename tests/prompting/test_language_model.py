import json
from types import SimpleNamespace

import pytest

from rankwise.prompting.language_model import Generation, Recorded, Sampling, Score, check_prompts, check_requests


class Counting:
    name, context = "counting", None

    def __init__(self, weights=1):
        self.asked, self.fails_at, self.weights = [], None, weights

    def identity(self):
        return {"weights": self.weights}

    def generate(self, prompts, sampling, *, on_result=None):
        out = []
        for i, p in enumerate(prompts):
            if self.fails_at is not None and len(self.asked) >= self.fails_at:
                raise ConnectionError("down")
            self.asked.append(p)
            out.append(
                Generation(
                    text=f"{p}!",
                    tokens=("a",),
                    logprobs=(-0.5,),
                    top_logprobs=(-0.5,),
                    special=(False,),
                    prompt_tokens=1,
                )
            )
            on_result(i, out[-1])
        return out

    def score(self, prompts, continuations, *, on_result=None):
        out = []
        for i, (p, c) in enumerate(zip(prompts, continuations, strict=True)):
            self.asked.append(p)
            out.append([Score(logprobs=(-float(len(t)),)) for t in c])
            on_result(i, out[-1])
        return out


def test_what_is_recorded_is_never_asked_again_even_after_a_failure_midway(tmp_path):
    inner = Counting()
    inner.fails_at = 3
    prompts = ["a", "b", "a", "c", "d", "é"]
    with pytest.raises(ConnectionError), Recorded(inner, tmp_path / "r.jsonl") as model:
        model.generate(prompts)
    with (tmp_path / "r.jsonl").open("a") as f:
        f.write('{"key": "cut sh')  # what a kill leaves
    inner.fails_at = None
    model = Recorded(inner, tmp_path / "r.jsonl")
    seen = {}
    assert [g.text for g in model.generate(prompts, on_result=lambda i, g: seen.update({i: g.text}))] == [
        f"{p}!" for p in prompts
    ]
    assert sorted(inner.asked) == sorted({"a", "b", "c", "d", "é"})
    assert seen == {i: f"{p}!" for i, p in enumerate(prompts)}
    assert (model.asked, model.found) == (2, 4)
    model.generate(prompts, Sampling(max_new_tokens=3))
    assert len(inner.asked) == 10  # other options are other requests
    model.close()
    with Recorded(inner, tmp_path / "r.jsonl") as model:
        scored = model.score(["x"], [["ab", "c"]])
    scored = Recorded(inner, tmp_path / "r.jsonl").score(["x"], [["ab", "c"]])
    assert [s.total for s in scored[0]] == [-2, -1]
    assert Recorded(inner, tmp_path / "r.jsonl").score(["x"], [["ab", "c"]]) == scored
    assert inner.asked.count("x") == 1


def test_a_record_that_is_none_is_named(tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        Recorded(Counting(), tmp_path / "r.jsonl")


def test_a_model_that_has_changed_is_asked_again_under_the_same_name(tmp_path):
    for weights in (1, 2, 1):
        inner = Counting(weights)
        with Recorded(inner, tmp_path / "r.jsonl") as model:
            model.generate(["a"])
            model.score(["a"], [["b"]])
        assert len(inner.asked) == (0 if weights == 1 and model.found else 2)
    assert model.found == 2


def test_a_second_command_with_the_same_record_is_refused_until_the_first_is_done(tmp_path):
    first, second = Recorded(Counting(), tmp_path / "r.jsonl"), Recorded(Counting(), tmp_path / "r.jsonl")
    first.generate(["a", "b"])
    with pytest.raises(ValueError, match=r"r\.jsonl"):
        second.generate(["a"])
    first.close()
    second.generate(["b", "c"])
    assert second.model.asked == ["c"]  # it knows what was written since it began
    first.generate(["a", "b"])  # what it knows needs no file
    with pytest.raises(ValueError, match=r"r\.jsonl"):
        first.generate(["d"])
    del second
    first.generate(["c", "d"])
    assert first.model.asked == ["a", "b", "d"]
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 4


def test_looking_at_a_record_cuts_off_nothing_that_another_command_is_writing(tmp_path):
    whole = json.dumps({"key": "k", "result": 1}) + "\n"
    (tmp_path / "r.jsonl").write_text(whole + '{"key": "half')
    Recorded(Counting(), tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == whole + '{"key": "half'


def test_a_file_in_a_prompt_is_known_by_its_content(tmp_path):
    clip, model = tmp_path / "clip.mp4", Recorded(Counting(), tmp_path / "r.jsonl")
    prompt = [{"role": "user", "content": [{"type": "video", "path": str(clip)}, {"type": "text", "text": "What?"}]}]
    for content in (b"one", b"other", b"one"):
        clip.write_bytes(content)
        model.generate([prompt])
    assert len(model.model.asked) == 2
    moved = tmp_path / "moved.mp4"
    moved.write_bytes(b"other")
    prompt[0]["content"][0]["path"] = moved
    model.generate([prompt])
    assert len(model.model.asked) == 2
    prompt[0]["content"][0] = {"type": "image", "image": object()}
    with pytest.raises(ValueError, match="recognised again"):
        model.generate([prompt])


@pytest.mark.parametrize("broken", ["[" * 200_000, '{"key": 1', '{"key": "k"}'])
def test_lines_that_are_no_results_are_named_without_a_crash(tmp_path, broken):
    (tmp_path / "r.jsonl").write_text(json.dumps({"key": "k", "result": 1}) + "\n" + broken + "\n")
    with pytest.raises(ValueError, match="line 2"):
        Recorded(Counting(), tmp_path / "r.jsonl")


CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ("a", [["b"]], "one text was given where a list of prompts"),
        (CHAT, [["b"]], "one chat was given where a list of prompts"),
        ([{"role": "user"}], [["b"]], "one chat"),
        ([[{"role": "user"}]], [["b"]], "prompt 0 is neither a text nor a list of messages"),
        (["a", 3], [["b"], ["c"]], "prompt 1 is neither"),
        (["a"], [" Paris"], "continuations of prompt 0 are one text, ' Paris'"),
        (["a"], "b", "1 prompts need as many lists"),
        (["a", "b"], [["c"]], "2 prompts need as many lists"),
        (["a"], [["b", ""]], "continuation 1 of prompt 0 is empty"),
    ],
)
def test_one_text_where_a_list_is_needed_is_refused_by_every_model(tmp_path, prompts, continuations, message):
    from prompting.families import family, numbers
    from rankwise.prompting.server_model import ServerModel
    from rankwise.prompting.transformers_model import TransformersModel

    models = [
        Recorded(Counting(), tmp_path / "r.jsonl"),
        TransformersModel(family("llama"), numbers()),
        ServerModel("m", "http://127.0.0.1:9/v1", retries=0),
    ]
    for model in models:
        with pytest.raises(ValueError, match=message):
            model.score(prompts, continuations)
        if continuations[0] == ["b"]:
            with pytest.raises(ValueError, match=message):
                model.generate(prompts)


def test_a_score_without_a_token_is_none():
    with pytest.raises(ValueError, match="nothing was scored"):
        Score(logprobs=())
    check_prompts(["a", CHAT])
    check_requests([CHAT], [["b"]])


def test_sampling_is_greedy_where_nothing_is_said_and_has_its_limits():
    assert Sampling() == Sampling(max_new_tokens=64, temperature=0.0, top_p=1.0, stop=(), seed=0)
    assert Sampling(max_new_tokens=1, temperature=3.0, top_p=0.01).max_new_tokens == 1
    for options in (
        {"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")},
        {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": float("nan")},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.*"):
            Sampling(**options)


def test_a_score_is_the_sum_of_its_tokens_or_their_mean():
    score = Score(logprobs=(-1.0, -0.5, -0.25))
    assert (score.total, score.mean) == (-1.75, -1.75 / 3)
    assert Score(logprobs=(1e16, 1.0, -1e16)).total == 1.0  # nothing is lost


def test_a_record_is_the_model_that_it_records(tmp_path):
    class Counted(Counting):
        context = 77

        def count_tokens(self, prompt):
            return len(prompt)

    with Recorded(Counted(3), tmp_path / "r.jsonl") as model:
        assert (model.name, model.context, model.identity(), model.count_tokens("abc")) == (
            "counting", 77, {"weights": 3}, 3,
        )  # fmt: skip
        assert (model.asked, model.found) == (0, 0)
        assert not (tmp_path / "r.jsonl").exists()  # nothing was asked yet
        model.generate(["a", "a", "b"])
        assert (model.asked, model.found) == (2, 1)
        model.generate(["a"])
        assert (model.asked, model.found) == (2, 2)


def test_what_is_recorded_comes_back_as_it_was_and_each_is_told_as_it_comes(tmp_path):
    class Model(Counting):
        def generate(self, prompts, sampling, *, on_result=None):
            self.sampling = sampling
            out = [
                Generation(text=f"{p}\u2028é", tokens=("a", "b"), logprobs=(-0.5, -1.0), top_logprobs=(-0.25, -1.0),
                           special=(False, True), prompt_tokens=3)
                for p in prompts
            ]  # fmt: skip
            for i in reversed(range(len(prompts))):
                on_result(i, out[i])
            return out

    inner, seen = Model(), []
    with Recorded(inner, tmp_path / "r.jsonl") as model:
        first = model.generate(["x", "y", "x"], on_result=lambda i, g: seen.append((i, g)))
        assert inner.sampling == Sampling()
        scored = model.score(["x", "y"], [["ab"], ["c", "d"]], on_result=lambda i, s: seen.append((i, s)))
    assert [i for i, _ in seen] == [1, 0, 2, 0, 1]
    assert [g for _, g in seen[:3]] == [first[1], first[0], first[2]]
    assert [s for _, s in seen[3:]] == scored
    again, seen = Recorded(Counting(), tmp_path / "r.jsonl"), []
    assert again.generate(["x", "y", "x"], on_result=lambda i, g: seen.append((i, g))) == first
    assert again.score(["y", "x"], [("c", "d"), ("ab",)], on_result=lambda i, s: seen.append((i, s))) == scored[::-1]
    assert seen == [*enumerate(first), *enumerate(scored[::-1])]
    assert (again.asked, again.found) == (0, 5)
    assert all(isinstance(s, Score) and isinstance(s.logprobs, tuple) for row in scored for s in row)
    lines = (tmp_path / "r.jsonl").read_bytes().decode().split("\n")
    assert len(lines) == 5
    assert "\u2028é" in lines[0]  # as it was written, not escaped


def test_prompts_are_the_same_by_content_whatever_their_form(tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(b"one")
    (tmp_path / "copy").write_bytes(b"one")
    same = [
        [{"role": "user", "content": ["a", {"type": "video", "path": str(path)}]}],
        ({"role": "user", "content": ("a", {"type": "video", "path": tmp_path / "copy"})},),
    ]
    others = [
        [{"role": "user", "content": ["a", {"type": "image", "path": str(path)}]}],
        [{"role": "user", "content": ["b", {"type": "video", "path": str(path)}]}],
        [{"role": "user", "content": ["a", {"type": "video", "path": "not there"}]}],
        [{"role": "user", "content": ["a", {"type": "video", "path": "nor there"}]}],
        [{"role": "user", "content": ["a", {"type": "video", "path": 3}]}],
        [{"role": "user", "content": ["a", {"type": "video"}]}],
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "a"}],
        "a",
    ]
    inner = Counting()
    with Recorded(inner, tmp_path / "r.jsonl") as model:
        model.generate([*same, *others])
        assert len(inner.asked) == 1 + len(others)
        model.generate(same[1:] + others[::-1])
        assert len(inner.asked) == 1 + len(others)
        model.score(["a", "a", "a"], [["b"], ["c"], ["b", "c"]])
        assert len(inner.asked) == 4 + len(others)


def test_a_record_of_an_earlier_version_is_found_again(tmp_path):
    """Results may have cost money: what they are filed under stays."""
    key = "8ba16a71556e63161f7366f31d5f16b75553293d34a5fc748f4d18160b22d07b"
    line = {"key": key, "result": {"text": "b", "tokens": ["b"], "logprobs": [-0.5], "top_logprobs": [-0.5],
                                   "special": [False], "prompt_tokens": 1}}  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps(line) + "\n")
    assert Recorded(Counting(), tmp_path / "r.jsonl").generate(["a"])[0].text == "b"


@pytest.mark.parametrize(
    "prompts", [[[]], [["text"]], [[{"role": "user"}, {"role": "a", "content": "b"}]], [3], [None]]
)
def test_what_is_no_prompt_is_named_by_its_place(prompts):
    with pytest.raises(ValueError, match="prompt 1 is neither a text nor a list of messages with role and content"):
        check_prompts(["a", *prompts])
    check_prompts([])
    check_prompts(["", ({"role": "user", "content": "a", "name": "b"},)])
    with pytest.raises(ValueError, match="continuation 0 of prompt 1 is empty"):
        check_requests(["a", "b"], [[], [""]])
    with pytest.raises(ValueError, match="1 prompts need as many lists of continuations"):
        check_requests(["a"], [["b"], ["c"]])


def test_a_record_with_bytes_that_are_no_text_is_read_all_the_same(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'{"key": "k\xff", "result": 1}\n')
    with Recorded(Counting(), tmp_path / "r.jsonl") as model:
        assert model.generate(["a"])[0].text == "a!"
    assert len((tmp_path / "r.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("result", [3, ["a"], [["a"]], None, [[]]])
def test_a_recorded_result_of_another_form_is_refused_by_file(tmp_path, result):
    path = tmp_path / "asked.jsonl"

    def score(prompts, given):  # nothing is told while it works
        return [[Score(logprobs=(-1.0,)) for _ in texts] for texts in given]

    model = SimpleNamespace(
        name="toy",
        context=None,
        identity=lambda: "toy",
        score=lambda prompts, given, on_result: score(prompts, given),
    )
    with Recorded(model, path) as recorded:
        assert recorded.score(["a"], [["b"]]) == [[Score(logprobs=(-1.0,))]]
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"result": result}) + "\n")
    with (
        Recorded(model, path) as recorded,
        pytest.raises(ValueError, match=r"asked\.jsonl holds a result of another form \(.+\)|without a token"),
    ):
        recorded.score(["a"], [["b"]])
