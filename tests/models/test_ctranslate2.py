import pytest
import torch

from rankwise.bench.tuning.whisper import ctranslate2_model, original, runtime_tokens, token_log_probabilities
from rankwise.data import speech
from rankwise.jobs.speech import SpeechTask
from rankwise.models import load
from rankwise.models.ctranslate2 import read_variables, whisper_state


def test_whisper_is_the_real_model_and_keeps_every_number():
    model, variables = load("whisper-tiny.en"), read_variables(original() / "model.bin")
    assert sum(p.numel() for p in model.parameters()) == 37_760_256
    assert len(variables) == 149  # 148 and one alias
    state = model.state_dict()
    for name, value in whisper_state(variables).items():
        assert torch.equal(state[name], value), name
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    fused = variables["decoder/layer_2/attention/linear_1/weight"].float()
    attention = model.model.decoder.layers[2].encoder_attn
    assert torch.equal(torch.cat([attention.k_proj.weight, attention.v_proj.weight]), fused)


def test_ten_recordings_give_the_runtimes_transcripts_and_log_probabilities():
    task, model, runtime = SpeechTask.of("whisper-tiny.en"), load("whisper-tiny.en").eval(), ctranslate2_model()
    examples = task.encode(speech("child").split().test.head(10))
    theirs = [runtime_tokens(runtime, task, e)[0] for e in examples]
    texts = [t.strip() for t in task.processor.tokenizer.batch_decode(theirs, skip_special_tokens=True)]
    assert task.transcribe(model, examples) == texts
    for example in examples[:4]:
        heard, reference = runtime_tokens(runtime, task, example, suppress_tokens=[], suppress_blank=False)
        (ours,) = token_log_probabilities(model, task, [{**example, "tokens": heard}])
        # float32 through eight layers; log-probabilities of up to 20
        torch.testing.assert_close(ours[: len(heard)], reference, atol=2e-3, rtol=1e-4)


def test_broken_files_are_named(tmp_path):
    data = (original() / "model.bin").read_bytes()
    for name, content, match in (
        ("cut.bin", data[:5_000_000], "whole"),
        ("version.bin", b"\x03" + data[1:], "binary version 3; 6 is read"),
        ("empty.bin", b"", "cannot be read as a CTranslate2 model"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=match):
            read_variables(tmp_path / name)
    with pytest.raises(ValueError, match="not a CTranslate2 Whisper"):
        whisper_state({"encoder/layer_norm/gamma": torch.ones(2)})
