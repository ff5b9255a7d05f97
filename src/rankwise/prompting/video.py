"""Videos in prompts: frames out of files, and multimodal models of `transformers` that read them.

A video is part of a chat message's content, ``{"type": "video", "path": "clip.mp4"}``. Its frames are sampled
uniformly, one a second by default. Models whose processor takes videos get them as a video; others, and all where
torchvision (which `transformers` needs for videos) is not installed, get the frames as images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.models.loading import model_fingerprint, pretrained
from rankwise.prompting.encoding import continuations
from rankwise.prompting.language_model import Generation, Message, OnResult, Prompt, Sampling, check_prompts
from rankwise.prompting.transformers_model import rendered, tokenizer_identity, weights_identity
from rankwise.reading import check_regular

__all__ = ["VideoModel", "read_frames"]


@dataclass(frozen=True)
class Frames:
    """Sampled frames.

    Attributes
    ----------
    images : ndarray
        ``(frames, height, width, 3)``, uint8, RGB.
    seconds : ndarray
        ``(frames,)``, when each is shown, from the video's first frame on.
    duration : float
        How long the video is, in seconds.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from rankwise.data.moving import write_moving
    >>> from rankwise.prompting import read_frames
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     video = write_moving(Path(folder, "one.mp4"), np.full((28, 28), 255, np.uint8), seed=0)  # 3 seconds
    ...     frames = read_frames(video)
    >>> frames.images.shape, frames.seconds.tolist(), round(frames.duration, 2)
    ((3, 64, 64, 3), [0.0, 1.0, 2.0], 3.0)
    """

    images: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    duration: float


def read_frames(path: str | Path, *, fps: float = 1.0, most: int = 16, side: int = 224) -> Frames:
    """Frames of a video file, by their timestamps, so that a variable frame rate does not matter.

    Parameters
    ----------
    path : str or Path
        A video file of any kind that FFmpeg reads.
    fps : float
        Frames taken of a second; at least one frame is taken.
    most : int
        Where there would be more, as many, spread over the whole video.
    side : int
        A frame has at most side² pixels, as in VideoICL's released code; the aspect ratio stays.

    Raises
    ------
    ValueError
        No such file, no video stream in it, or no frame that can be decoded.
    ImportError
        PyAV is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from rankwise.data.moving import write_moving
    >>> from rankwise.prompting import read_frames
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     video = write_moving(Path(folder, "one.mp4"), np.full((28, 28), 255, np.uint8), seed=0)  # 3 seconds
    ...     read_frames(video, fps=2, most=4, side=32).images.shape
    (4, 32, 32, 3)
    """
    if not fps > 0 or most < 1 or side < 1:
        raise ValueError(f"fps={fps}, most={most}, side={side}; all must be positive")
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise ImportError("videos are read by PyAV: pip install 'rankwise[video]'") from error
    check_regular(Path(path))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            stream = container.streams.video[0]
            shown = sorted(p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard)
            if not shown:
                raise ValueError(f"{path} has no frames")
            unit = float(stream.time_base or 1)
            times = (np.array(shown) - shown[0]) * unit
            wanted = np.array(shown)[sampled(times, fps, most)]
            container.seek(0)
            kept = {}
            for frame in container.decode(stream):
                if frame.pts in wanted and frame.pts not in kept:
                    scale = min(1.0, side / (frame.width * frame.height) ** 0.5)
                    size = {"width": max(1, int(scale * frame.width)), "height": max(1, int(scale * frame.height))}
                    kept[frame.pts] = frame.reformat(**size, format="rgb24").to_ndarray()
                if len(kept) == len(wanted):
                    break
    except (FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error
    if not kept:
        raise ValueError(f"{path}: none of its {len(shown)} frames can be decoded")
    order = sorted(kept)
    last = times[-1] + (np.diff(times).mean() if len(times) > 1 else 0.0)
    seconds = (np.array(order) - shown[0]) * unit
    return Frames(images=np.stack([kept[p] for p in order]), seconds=seconds, duration=float(last))


def sampled(times: NDArray[np.float64], fps: float, most: int) -> NDArray[np.intp]:
    """Positions of the frames on screen at 0, 1 / fps, 2 / fps … seconds; ``most`` of them, evenly spread, if more."""
    moments = np.arange(0, max(times[-1], 0) + 1e-9, 1 / fps)
    if len(moments) > most:
        moments = np.linspace(0, times[-1], most)
    return np.unique(np.searchsorted(times, moments + 1e-9, side="right") - 1)


def _frames_of(path: Path, stamp: int, **options: Any) -> Frames:
    """Frames of the file as it was at a time: written anew, it is read anew."""
    return read_frames(path, **options)


class VideoModel:
    """A multimodal model of `transformers` (Qwen2-VL, LLaVA-OneVision, SmolVLM …) that reads chats with videos.

    Parameters
    ----------
    model : str or PreTrainedModel
        A folder, a hub id, or a loaded image-text-to-text model.
    processor : ProcessorMixin, optional
        The model's processor: needed with a loaded model.
    fps : float
        Frames taken of a second.
    query, example : (int, int)
        Of the last turn's videos, and of those before it: frames at most, and the side of a square of as many pixels as
        a frame has at most.
    as_images : bool, optional
        Give frames as images; by default where the processor takes no videos.
    cache : int
        Videos whose frames are kept, while their files stay as they are: a pool's examples recur.

    Raises
    ------
    ValueError
        A loaded model without its processor; and from `generate` a prompt that leaves no room for its answer.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    >>> from transformers import PreTrainedTokenizerFast
    >>> from rankwise.prompting import Sampling, VideoModel
    >>> words = Tokenizer(models.WordLevel({"?": 0, "<image>": 1, "What": 2, "happens": 3}, unk_token="?"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> class Processor:  # a model of the hub brings its own
    ...     tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    ...     def apply_chat_template(self, turns, **options):
    ...         return " ".join(part["text"] for turn in turns for part in turn["content"])
    ...     def __call__(self, text, return_tensors):
    ...         return self.tokenizer(text, return_tensors=return_tensors)
    >>> text = LlamaConfig(vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...                    num_attention_heads=2, eos_token_id=None)
    >>> eyes = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> config = LlavaConfig(vision_config=eyes, text_config=text, image_token_id=1)
    >>> model = VideoModel(LlavaForConditionalGeneration(config), Processor())
    >>> chat = [{"role": "user", "content": "What happens?"}]  # beside it {"type": "video", "path": "clip.mp4"}
    >>> len(model.generate([chat], Sampling(max_new_tokens=3))[0].tokens)
    3
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        fps: float = 1.0,
        query: tuple[int, int] = (32, 384),
        example: tuple[int, int] = (16, 224),
        as_images: bool | None = None,
        cache: int = 256,
    ) -> None:
        if isinstance(model, str):
            import transformers

            self.name = model
            self.model = pretrained(transformers.AutoModelForImageTextToText, model)
            self.processor = pretrained(transformers.AutoProcessor, model)
        elif processor is None:
            raise ValueError("a loaded model needs its processor=")
        else:
            self.name, self.model, self.processor = model.config.name_or_path or "model", model, processor
        self.model.eval()
        self.context: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.fps, self.query, self.example = fps, query, example
        takes_videos = getattr(self.processor, "video_processor", None) is not None
        self.as_images = not takes_videos if as_images is None else as_images
        self._frames, self._given = lru_cache(cache)(_frames_of), model

    def identity(self) -> object:
        """See `TextGenerator`: model, processor, and how frames are taken."""
        if isinstance(self._given, str):
            model, processor = model_fingerprint(self._given), None
        else:
            settings = str(getattr(self.processor, "to_dict", dict)())
            model, processor = weights_identity(self.model), [tokenizer_identity(self.processor.tokenizer), settings]
        frames = [self.fps, *self.query, *self.example, self.as_images]
        return {"model": model, "processor": processor, "frames": frames}

    def count_tokens(self, prompt: Prompt) -> int:
        """See `TextGenerator`: those that stand for pixels included."""
        return int(self.inputs(prompt)["attention_mask"].sum())

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, on_result: OnResult | None = None
    ) -> list[Generation]:
        """See `TextGenerator`. One prompt at a time: pixels, not padding, decide what fits into memory."""
        check_prompts(prompts)
        out, sampling = [], sampling or Sampling()
        for i, prompt in enumerate(prompts):
            inputs = {k: v.to(self.model.device) for k, v in self.inputs(prompt).items()}
            tokens = int(inputs["attention_mask"].sum()) + sampling.max_new_tokens
            if self.context is not None and tokens > self.context:
                raise ValueError(
                    f"prompt {i} and {sampling.max_new_tokens} new tokens have {tokens} tokens; {self.name} takes "
                    f"{self.context}: show fewer examples or frames"
                )
            found = next(continuations(self.model, self.processor.tokenizer, inputs, sampling))
            out.append(found)
            if on_result:
                on_result(i, found)
        return out

    def inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """What the model is called with."""
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        turns, seen = [], []
        for n, message in enumerate(messages):
            limits = self.query if n == len(messages) - 1 else self.example
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
            turns.append(
                {"role": message["role"], "content": [p for part in parts for p in self._part(part, limits, seen)]}
            )
        text = rendered(self.processor, turns, self.name)
        pixels: dict[str, Any] = {}
        if seen and self.as_images:
            pixels["images"] = [image for frames in seen for image in frames.images]
        elif seen:
            pixels["videos"] = [frames.images for frames in seen]
            pixels["do_sample_frames"] = False  # done already
        return dict(self.processor(text=[text], return_tensors="pt", **pixels))

    def _part(self, part: dict, limits: tuple[int, int], seen: list[Frames]) -> list[dict]:
        if part.get("type") != "video":
            return [part]
        most, side = limits
        path = Path(str(part["path"]))
        stamp = path.stat().st_mtime_ns if path.exists() else 0
        frames = self._frames(path, stamp, fps=self.fps, most=most, side=side)
        seen.append(frames)
        return [{"type": "image"}] * len(frames.images) if self.as_images else [{"type": "video"}]
