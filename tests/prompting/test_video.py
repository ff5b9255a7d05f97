from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rankwise.models import load_tokenizer
from rankwise.prompting.iterative import Item, IterativeICL, SimilarityIndex
from rankwise.prompting.language_model import Recorded, Sampling
from rankwise.prompting.video import VideoModel, read_frames, sampled


def write(path, frames, *, fps=10, times=None, audio=False):
    """An mp4 of grey frames whose brightness is given; ``times`` in tenths of a second make the rate variable."""
    with av.open(str(path), "w") as container:
        if audio:
            stream = container.add_stream("aac", rate=16000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 16000
            packets = [*stream.encode(sound), *stream.encode(None)]
        else:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "1"})
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
            stream.codec_context.time_base = Fraction(1, fps)
            packets = []
            for i, level in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.full((64, 128, 3), level, np.uint8), format="rgb24")
                frame.pts, frame.time_base = (i if times is None else times[i]), Fraction(1, fps)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in packets:
            container.mux(packet)
    return path


def levels(found):
    return [float(image.mean()) for image in found.images]


def test_one_frame_a_second_by_timestamps(tmp_path):
    video = write(tmp_path / "v.mp4", range(0, 240, 6))  # 40 frames at 10 a second
    found = read_frames(video)
    np.testing.assert_allclose(found.seconds, [0, 1, 2, 3])
    np.testing.assert_allclose(levels(found), [0, 60, 120, 180], atol=3)
    assert found.duration == pytest.approx(4)
    assert found.images.shape == (4, 64, 128, 3)
    assert len(read_frames(video, fps=2).seconds) == 8


def test_more_frames_than_wanted_are_spread_over_the_whole_video(tmp_path):
    video = write(tmp_path / "v.mp4", range(0, 240, 6))
    found = read_frames(video, fps=10, most=4, side=32)
    np.testing.assert_allclose(found.seconds, [0, 1.3, 2.6, 3.9])
    assert found.images.shape == (4, 22, 45, 3)  # at most 32² pixels; the aspect ratio stays


def test_short_and_variable_rate_videos(tmp_path):
    short = read_frames(write(tmp_path / "s.mp4", [200, 100, 50]))
    assert short.seconds.tolist() == [0]
    np.testing.assert_allclose(levels(short), [200], atol=3)
    variable = read_frames(write(tmp_path / "v.mp4", [10, 60, 110, 160], times=[0, 2, 25, 31]))
    np.testing.assert_allclose(variable.seconds, [0, 0.2, 2.5], atol=1e-6)  # what is on screen at 0, 1, 2 and 3 s
    np.testing.assert_allclose(levels(variable), [10, 60, 110], atol=3)


def test_what_is_on_screen_is_the_last_frame_shown():
    times = np.array([0.0, 0.4, 1.0, 1.5, 2.2])
    assert sampled(times, 1.0, 16).tolist() == [0, 2, 3]
    assert sampled(np.array([0.0]), 1.0, 16).tolist() == [0]


def test_files_that_are_no_videos_are_named(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a video at all" * 20)
    with pytest.raises(ValueError, match=r"bad\.mp4 cannot be read"):
        read_frames(tmp_path / "bad.mp4")
    with pytest.raises(ValueError, match="no such file"):
        read_frames(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="no video stream"):
        read_frames(write(tmp_path / "a.mp4", [], audio=True))
    with pytest.raises(ValueError, match="must be positive"):
        read_frames(tmp_path / "none.mp4", fps=0)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% elif p['type'] == 'image' %}[<image>]{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def small_llava():
    """LLaVA's own classes throughout, with random weights."""
    tokenizer = load_tokenizer("smollm2")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(**TEXT, vocab_size=len(tokenizer))
    vision = CLIPVisionConfig(**VISION, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=image, vision_feature_layer=-1)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


class FramesProcessor:
    """What Qwen2-VL's processor does with images; the library's own needs torchvision even where there is no video."""

    def __init__(self, tokenizer):
        self.tokenizer, self.pixels = tokenizer, Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112)

    def apply_chat_template(self, turns, **options):
        return self.tokenizer.apply_chat_template(turns, chat_template=TEMPLATE, **options)

    def __call__(self, text, return_tensors, images=None):
        if images is None:
            return dict(self.tokenizer(text, return_tensors=return_tensors))
        found = self.pixels(images=images, return_tensors=return_tensors)
        parts = text[0].split("<image>")
        counts = (found["image_grid_thw"].prod(1) // self.pixels.merge_size**2).tolist()
        whole = parts[0] + "".join("<image>" * n + p for n, p in zip(counts, parts[1:], strict=True))
        inputs = dict(self.tokenizer([whole], return_tensors="pt")) | dict(found)
        image = self.tokenizer.convert_tokens_to_ids("<image>")
        return inputs | {"mm_token_type_ids": (inputs["input_ids"] == image).int()}


def small_qwen2_vl():
    tokenizer = load_tokenizer("smollm2")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=image, video_token_id=video,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config), FramesProcessor(tokenizer)


TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 2048}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32}


@pytest.fixture(scope="module", params=[small_llava, small_qwen2_vl], ids=lambda f: f.__name__)
def model(request):
    torch.manual_seed(0)
    return VideoModel(*request.param(), query=(3, 112), example=(2, 28))


def shown(path):
    return [{"type": "video", "path": str(path)}, {"type": "text", "text": "What?"}]


def chat(*paths):
    turns = []
    for path in paths[:-1]:
        turns.append({"role": "user", "content": shown(path)})
        turns.append({"role": "assistant", "content": "this"})
    return [*turns, {"role": "user", "content": shown(paths[-1])}]


def test_a_model_reads_the_frames_of_its_prompt(model, tmp_path):
    a, b = (write(tmp_path / f"{n}.mp4", range(n, n + 160, 4)) for n in (0, 60))
    inputs = model.inputs(chat(a, b))
    if "image_grid_thw" in inputs:
        assert inputs["image_grid_thw"].shape == (5, 3)  # two frames of the example, three of the query
        sizes = inputs["image_grid_thw"].prod(1)
        assert sizes[:2].max() < sizes[2:].min()  # the example's are smaller
    else:
        assert len(inputs["pixel_values"]) == 5
    one, other = model.generate([chat(a, b), chat(b, a)], Sampling(max_new_tokens=5))
    assert one.prompt_tokens == model.count_tokens(chat(a, b))
    assert one.logprobs != other.logprobs  # pixels matter
    assert model.generate([chat(a, b)], Sampling(max_new_tokens=5))[0] == one
    expected = model.model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert one.tokens == tuple(model.processor.tokenizer.convert_ids_to_tokens(expected.tolist()))


def test_the_loop_runs_on_videos_and_reads_each_file_once(model, tmp_path):
    files = [write(tmp_path / f"{n}.mp4", range(n, n + 80, 4)) for n in range(0, 160, 40)]

    def brightness(media):
        angles = np.array([read_frames(m["path"]).images.mean() for m in media]) / 200
        return np.stack([np.cos(angles), np.sin(angles)], 1)

    def item(path, answer=""):
        return Item(question="What is it?", answer=answer, media={"type": "video", "path": str(path)})

    index = SimilarityIndex(media=brightness, alpha=1.0).fit(
        [item(f, n) for f, n in zip(files[:3], "abc", strict=True)]
    )
    model._frames.cache_clear()
    recorded = Recorded(model, tmp_path / "record.jsonl")
    found = IterativeICL(recorded, index, shots=1, rounds=3, threshold=1.0, max_new_tokens=3).answer(item(files[3]))
    assert [r.shown for r in found.trace] == [(2,), (1,), (0,)]
    assert model._frames.cache_info().misses == 4
    again = IterativeICL(recorded, index, shots=1, rounds=3, threshold=1.0, max_new_tokens=3).answer(item(files[3]))
    assert again == found
    assert recorded.asked == 3


def test_a_processor_that_takes_videos_gets_them_whole(model, tmp_path, monkeypatch):
    seen = {}

    class Processor:
        tokenizer, video_processor = model.processor.tokenizer, object()

        def apply_chat_template(self, turns, **options):
            seen["turns"] = turns
            return "text"

        def __call__(self, text, **pixels):
            seen.update(pixels)
            return {"attention_mask": torch.ones(1, 3)}

    whole = VideoModel(model.model, Processor(), query=(3, 56))
    whole.inputs(chat(write(tmp_path / "v.mp4", range(0, 240, 6))))
    assert seen["turns"][0]["content"][0] == {"type": "video"}
    assert [v.shape for v in seen["videos"]] == [(3, 39, 79, 3)]
    assert seen["do_sample_frames"] is False
    with pytest.raises(ValueError, match="processor="):
        VideoModel(model.model)


def test_a_model_with_other_weights_frames_or_processor_is_another_one(model):
    first = model.identity()
    assert VideoModel(model.model, model.processor, query=(3, 112), example=(2, 28)).identity() == first
    assert VideoModel(model.model, model.processor, query=(4, 112), example=(2, 28)).identity() != first
    bias = next(p for n, p in model.model.named_parameters() if n.endswith("norm.weight"))
    with torch.no_grad():
        bias += 1
    assert model.identity() != first
    with torch.no_grad():
        bias -= 1
    assert model.identity() == first


def test_a_file_written_anew_is_read_anew_and_prompts_that_do_not_fit_are_named(model, tmp_path):
    path = write(tmp_path / "v.mp4", [10] * 10)
    first = model.inputs(chat(path))
    write(path, [200] * 10)
    assert any(not torch.equal(v, first[k]) for k, v in model.inputs(chat(path)).items())
    with pytest.raises(ValueError, match=r"prompt 0 and 3000 new tokens.*takes 2048"):
        model.generate([chat(path)], Sampling(max_new_tokens=3000))
    with pytest.raises(ValueError, match="one chat was given"):
        model.generate(chat(path))


@pytest.mark.parametrize(
    ("fps", "most", "expected"),
    [
        (1.0, 16, [0, 2, 3]),
        (2.0, 16, [0, 1, 2, 3]),
        (2.0, 5, [0, 1, 2, 3]),  # at 0, ½, 1, 1½ and 2 seconds: none is too much
        (2.0, 4, [0, 1, 2, 4]),  # else 4 of the whole, at 0, .73, 1.47 and 2.2
        (1.0, 1, [0]),
        (0.4, 16, [0]),
        (100.0, 16, [0, 1, 2, 3, 4]),
    ],
)
def test_frames_are_those_on_screen_and_spread_where_there_are_more(fps, most, expected):
    times = np.array([0.0, 0.4, 1.0, 1.5, 2.2])
    assert sampled(times, fps, most).tolist() == expected


def test_a_moment_that_is_a_frames_own_shows_that_frame_and_a_video_that_ends_there_counts_it():
    times = np.arange(4) / 3 * 3  # 0, 1, 2, 3 but for rounding
    assert sampled(times, 1.0, 16).tolist() == [0, 1, 2, 3]
    assert sampled(np.array([0.0, 0.1, 0.2, 0.30000000000000004]), 10.0, 16).tolist() == [0, 1, 2, 3]
    assert sampled(np.array([0.0, -0.0]), 1.0, 16).tolist() == [1]


def test_settings_are_these_where_none_are_given(model, tmp_path):
    found = VideoModel(model.model, model.processor)
    assert (found.fps, found.query, found.example) == (1.0, (32, 384), (16, 224))
    assert found._frames.cache_info().maxsize == 256
    assert found.as_images == (getattr(model.processor, "video_processor", None) is None)
    assert VideoModel(model.model, model.processor, as_images=False).as_images is False
    assert found.context == 2048
    assert found.name == "model"
    video = write(tmp_path / "v.mp4", range(0, 240, 6), fps=1)  # 40 seconds
    one = read_frames(video)
    assert one.images.shape == (16, 64, 128, 3)
    assert found.inputs([{"role": "user", "content": shown(video)}])["attention_mask"].shape[0] == 1
    seen = []
    found._part({"type": "video", "path": str(video)}, found.query, seen)
    found._part({"type": "video", "path": str(video)}, found.example, seen)
    assert [len(f.images) for f in seen] == [32, 16]
    assert not found.model.training


@pytest.mark.parametrize(("side", "size"), [(224, (64, 128)), (90, (63, 127)), (45, (31, 63)), (1, (1, 1))])
def test_a_frame_has_at_most_side_squared_pixels_and_is_never_made_larger(tmp_path, side, size):
    found = read_frames(write(tmp_path / "v.mp4", [10, 20]), side=side)
    assert found.images.shape == (1, *size, 3)
    assert size[0] * size[1] <= max(side**2, 1)


def test_times_begin_with_the_first_frame_and_a_video_lasts_till_its_last_one_is_gone(tmp_path):
    found = read_frames(write(tmp_path / "v.mp4", [10, 60, 110], times=[30, 32, 45]), fps=10)
    np.testing.assert_allclose(found.seconds, [0, 0.2, 1.5], atol=1e-6)
    np.testing.assert_allclose(levels(found), [10, 60, 110], atol=3)
    assert found.duration == pytest.approx(1.5 + 0.75)
    assert read_frames(write(tmp_path / "one.mp4", [50])).duration == 0
    for options in ({"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"most": 0}, {"side": 0}):
        with pytest.raises(ValueError, match="all must be positive"):
            read_frames(tmp_path / "v.mp4", **options)
    assert len(read_frames(tmp_path / "v.mp4", fps=10, most=1, side=1).images) == 1


def test_what_is_no_video_in_a_message_is_left_as_it_is(model, tmp_path):
    seen = []
    part = {"type": "text", "text": "What?"}
    assert model._part(part, (1, 28), seen) == [part]
    assert seen == []
    with pytest.raises(ValueError, match="no such file"):
        model._part({"type": "video", "path": str(tmp_path / "none.mp4")}, (1, 28), seen)
    plain = model.inputs("What?")
    assert set(plain) <= {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert torch.equal(plain["input_ids"], model.inputs([{"role": "user", "content": "What?"}])["input_ids"])


def test_an_answer_may_fill_the_context_to_its_last_token_and_is_told_as_it_comes(model, tmp_path):
    path, told = write(tmp_path / "v.mp4", [10] * 10), []
    n = model.count_tokens(chat(path))
    context, model.context = model.context, n + 2
    try:
        found = model.generate([chat(path)] * 2, Sampling(max_new_tokens=2), on_result=lambda i, g: told.append((i, g)))
        assert told == list(enumerate(found))
        with pytest.raises(ValueError, match=f"prompt 0 and 3 new tokens have {n + 3} tokens; model takes {n + 2}"):
            model.generate([chat(path)], Sampling(max_new_tokens=3))
        model.context = None
        assert len(model.generate([chat(path)])[0].tokens) <= 64
    finally:
        model.context = context


def test_every_setting_of_frames_makes_another_model(model, monkeypatch):
    for name in ("weights_identity", "tokenizer_identity"):
        monkeypatch.setattr(f"rankwise.prompting.video.{name}", lambda given: "the same")
    options = {"fps": 1.0, "query": (3, 112), "example": (2, 28), "as_images": True}
    made = [options, *({**options, **o} for o in ({"fps": 2.0}, {"query": (3, 113)}, {"example": (3, 28)},
                                                  {"example": (2, 29)}, {"as_images": False}))]  # fmt: skip
    identities = [str(VideoModel(model.model, model.processor, **o).identity()) for o in made]
    assert len(set(identities)) == 6
    assert model.identity()["frames"] == [1.0, 3, 112, 2, 28, True]


def test_a_video_with_sound_shows_its_frames(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        sound, stream = container.add_stream("aac", rate=16000), container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for i in range(40):
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
            noise.sample_rate = 16000
            frame = av.VideoFrame.from_ndarray(np.full((64, 128, 3), 6 * i, np.uint8), format="rgb24")
            container.mux([*sound.encode(noise), *sound.encode(noise), *stream.encode(frame)])  # it sounds on
        container.mux([*sound.encode(None), *stream.encode(None)])
    found = read_frames(tmp_path / "v.mp4")
    np.testing.assert_allclose(found.seconds, [0, 1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(levels(found), [0, 60, 120, 180], atol=4)
    assert len(read_frames(tmp_path / "v.mp4", most=2).seconds) == 2  # of the pictures', not of the sound's times


def test_a_model_and_its_processor_are_read_by_name(monkeypatch):
    llava, processor = small_llava()
    seen = []

    def pretrained(kind, name):
        seen.append((kind.__name__, name))
        return processor if "Processor" in kind.__name__ else llava

    monkeypatch.setattr("rankwise.prompting.video.pretrained", pretrained)
    monkeypatch.setattr("rankwise.prompting.video.model_fingerprint", lambda name: f"content of {name}")
    model = VideoModel("a/name", fps=2.0)
    assert seen == [("AutoModelForImageTextToText", "a/name"), ("AutoProcessor", "a/name")]
    assert (model.model, model.processor, model.name) == (llava, processor, "a/name")
    assert model.identity() == {
        "model": "content of a/name", "processor": None, "frames": [2.0, 32, 384, 16, 224, True],
    }  # fmt: skip
