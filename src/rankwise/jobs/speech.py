"""Speech recognition with Whisper as a task of the main job: features, batches, decoding, error rates.

Decoding is greedy with the key-value cache; error rates are jiwer's after Whisper's own text normaliser (the English
one where the language is English, else the basic one), over the whole corpus: edits of all utterances by words of all.
"""

# (examples are plain dictionaries; models and processors are only known at run time)

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, GenerationMixin, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from rankwise.data import Corpus
from rankwise.data.audio import RATE, read_audio
from rankwise.jobs.items import Items, metrics
from rankwise.jobs.tasks import Example, batches, summed
from rankwise.models.loading import load_processor, pretrained, resolve
from rankwise.models.names import check_task

EVALUATION_BATCH = 16
MULTILINGUAL_VOCABULARY = 51_865  # the English models have one token fewer
# Speech has about four tokens a second. A hypothesis longer than this is a loop, and is cut.
TOKENS_A_SECOND, MORE_TOKENS = 6, 10
OnRow = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SpeechTask:
    """Recordings with transcripts, for a Whisper model.

    Attributes
    ----------
    processor : WhisperProcessor
    prompt : tuple of int
        Decoder tokens before the transcript, the start token first.
    english : bool
        Normalise by Whisper's English rules (spelling, numbers, contractions) instead of the basic ones.
    positions : int
        Tokens that the decoder has room for, the prompt included.
    """

    processor: WhisperProcessor
    prompt: tuple[int, ...]
    english: bool
    positions: int = 448
    counts_tokens: bool = False
    peft_type: str | None = None  # PEFT's SEQ_2_SEQ_LM would pass input_ids, which Whisper does not take

    @classmethod
    def of(cls, model: str, *, language: str | None = None, processor: str | None = None) -> SpeechTask:
        """The task for a model by name, folder or hub id.

        Parameters
        ----------
        language : str, optional
            Of a multilingual model, by name or code; English by default. An English-only model accepts no other.
        processor : str, optional
            Folder of the processor, where it is not the model's.

        Raises
        ------
        ValueError
            No Whisper, or a language that it does not know.
        """
        config = pretrained(AutoConfig, resolve(model))
        check_task(model, config.model_type, "asr")
        loaded, english = load_processor(processor or model), language is None or language.lower() in ("en", "english")
        multilingual = config.vocab_size >= MULTILINGUAL_VOCABULARY
        if not english and not multilingual:
            raise ValueError(f"{model} knows English only; language '{language}' needs a multilingual Whisper")
        tokenizer = loaded.tokenizer
        if multilingual:
            tokenizer.set_prefix_tokens(language=language or "english", task="transcribe", predict_timestamps=False)
        prompt = tuple(tokenizer("").input_ids[:-1])
        return cls(processor=loaded, prompt=prompt, english=english, positions=config.max_target_positions)

    def normalize(self, text: str) -> str:
        """Whisper's normaliser."""
        tokenizer = self.processor.tokenizer
        return (tokenizer.normalize(text) if self.english else tokenizer.basic_normalize(text)).strip()

    def encode(self, corpus: Corpus, on_row: OnRow | None = None) -> list[Example]:
        """Log-mel features ``(mels, frames)`` up to the last frame with sound, the floor after it, and the tokens."""
        examples = []
        for row, (path, text) in enumerate(zip(corpus.audio, corpus.texts, strict=True)):
            features = self.features(read_audio(path))
            examples.append({**features, "tokens": self.tokens(text), "text": text})
            if on_row is not None:
                on_row(row + 1, len(corpus))
        return examples

    def tokens(self, text: str) -> list[int]:
        """A transcript's tokens; Whisper writes it after a space, with which a word has the token it has inside."""
        return self.processor.tokenizer(f" {text.strip()}", add_special_tokens=False).input_ids

    def check(self, text: str) -> None:
        """``ValueError`` for a transcript that the decoder has no room for."""
        room, needed = self.positions - len(self.prompt), len(self.tokens(text))
        if needed > room:
            raise ValueError(f"the transcript has {needed} tokens; Whisper writes at most {room}: split the recording")

    def features(self, samples) -> Example:
        """``features`` and ``floor`` of one recording."""
        extractor = self.processor.feature_extractor
        padded = min(len(samples) + RATE // 2, extractor.n_samples)  # half a second shows the floor
        out = extractor(
            samples, sampling_rate=RATE, padding="max_length", max_length=padded, truncation=True, return_tensors="pt"
        )
        mel = out.input_features[0]
        sounding = (mel != mel[:, -1:]).any(0).nonzero()
        frames = int(sounding[-1]) + 1 if len(sounding) else 0
        return {"features": mel[:, :frames].clone(), "floor": float(mel[0, -1]), "seconds": len(samples) / RATE}

    def length(self, example: Example) -> int:
        """Mel frames."""
        return example["features"].shape[1]

    def collate(self, examples: list[Example]) -> dict[str, Tensor]:
        """``input_features`` ``(batch, mels, 3000)``, ``decoder_input_ids`` and ``labels`` ``(batch, seq)``.

        The prompt is given, not learnt: its labels are masked.
        """
        extractor, tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        spoken = [
            F.pad(e["features"], (0, extractor.nb_max_frames - e["features"].shape[1]), value=e["floor"])
            for e in examples
        ]
        longest = len(self.prompt) + max(len(e["tokens"]) for e in examples)
        inputs = torch.full((len(examples), longest), tokenizer.eos_token_id)
        labels = torch.full((len(examples), longest), -100)
        for row, example in enumerate(examples):
            given = [*self.prompt, *example["tokens"]]
            inputs[row, : len(given)] = torch.tensor(given)
            wanted = [*example["tokens"], tokenizer.eos_token_id]
            labels[row, len(self.prompt) - 1 : len(given)] = torch.tensor(wanted)
        return {"input_features": torch.stack(spoken), "decoder_input_ids": inputs, "labels": labels}

    def loss(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> float:
        """Cross-entropy a token."""
        read, _ = self._read(model, examples, bf16=bf16, decode=False)
        return metrics(read)["loss"]

    def evaluate(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> dict[str, float]:
        """``wer`` and ``cer`` of greedy decoding, ``loss`` a token; ``score`` is ``1 - wer``."""
        return metrics(self.items(model, examples, bf16=bf16))

    def items(self, model: nn.Module, examples: list[Example], *, bf16: bool = False) -> Items:
        """What every recording got, in the order given (`rankwise.jobs.items`)."""
        import jiwer

        read, heard = self._read(model, examples, bf16=bf16, decode=True)
        said = [self.normalize(e["text"]) for e in examples]
        words = [_edits(jiwer.process_words(a, b)) for a, b in zip(said, heard, strict=True)]
        letters = [_edits(jiwer.process_characters(a, b)) for a, b in zip(said, heard, strict=True)]
        return {
            "errors": [e for e, _ in words], "words": [n for _, n in words],
            "letter_errors": [e for e, _ in letters], "letters": [n for _, n in letters],
            **read,
        }  # fmt: skip

    def transcribe(self, model: nn.Module, examples: list[Example]) -> list[str]:
        """Transcripts as the model writes them, in the order given."""
        return self._read(model, examples, bf16=False, decode=True, normalize=False)[1]

    @torch.no_grad()
    def _read(
        self, model: nn.Module, examples: list[Example], *, bf16: bool, decode: bool, normalize: bool = True
    ) -> tuple[Items, list[str]]:
        """``nll`` and ``tokens``, and hypotheses, in the order given; the encoder runs once a recording for both."""
        whisper: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        device, training = whisper.device, whisper.training
        whisper.eval()
        order = sorted(range(len(examples)), key=lambda i: self.length(examples[i]))
        heard, at = [""] * len(examples), 0
        read: Items = {"nll": [0.0] * len(examples), "tokens": [0] * len(examples)}
        for batch in batches(self, [examples[i] for i in order], EVALUATION_BATCH):
            batch = {k: v.to(device) for k, v in batch.items()}
            rows = order[at : at + len(batch["labels"])]
            at += len(rows)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                features = batch["input_features"].to(whisper.dtype)
                states = BaseModelOutput(last_hidden_state=whisper.get_encoder()(features).last_hidden_state)
                given = batch["decoder_input_ids"]
                logits = whisper(encoder_outputs=states, decoder_input_ids=given, use_cache=False).logits
                for name, column in zip(read, summed(logits, batch["labels"]), strict=True):
                    for i, value in zip(rows, column.tolist(), strict=True):
                        read[name][i] = value
                if decode:
                    longest = max(examples[i]["seconds"] for i in rows)
                    for i, text in zip(rows, self._decoded(whisper, states, longest), strict=True):
                        heard[i] = self.normalize(text) if normalize else text.strip()
        whisper.train(training)
        return read, heard

    def _decoded(self, whisper: Any, states: Any, seconds: float) -> list[str]:
        settings = copy.deepcopy(whisper.generation_config)
        room = whisper.config.max_target_positions - len(self.prompt)
        settings.max_length = len(self.prompt) + min(room, int(TOKENS_A_SECOND * seconds) + MORE_TOKENS)
        settings.max_new_tokens = settings.forced_decoder_ids = None
        settings.do_sample, settings.num_beams, settings.pad_token_id = False, 1, settings.eos_token_id
        prompt = torch.tensor(self.prompt, device=whisper.device).repeat(len(states.last_hidden_state), 1)
        # Whisper's own generate encodes again and looks for timestamps; plain greedy decoding is what is wanted
        generate: Any = vars(GenerationMixin)["generate"]
        ids = generate(
            whisper,
            encoder_outputs=states,
            attention_mask=torch.ones(states.last_hidden_state.shape[:2], device=whisper.device),
            decoder_input_ids=prompt,
            decoder_attention_mask=torch.ones_like(prompt),
            generation_config=settings,
        )
        return self.processor.tokenizer.batch_decode(ids[:, len(self.prompt) :], skip_special_tokens=True)


def _edits(found: Any) -> tuple[int, int]:
    """Errors of one recording, and its length."""
    return found.substitutions + found.deletions + found.insertions, len(found.references[0])
