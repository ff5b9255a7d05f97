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
    with pytest.raises(ValueError, match="no such video"):
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

    def __call__(self, text, images, return_tensors):
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
