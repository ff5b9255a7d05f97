import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.models.whisper import ShortAudioEncoder, computed_positions, encoder_of, shorten, spoken_positions
from small_models import bert, whisper

FRAMES = 400


def features(*lengths, seed=0):
    """Random spectrograms with sound in the first ``lengths`` frames and a floor after it."""
    g = torch.Generator().manual_seed(seed)
    x = torch.full((len(lengths), 8, FRAMES), -0.7)
    for row, n in enumerate(lengths):
        x[row, :, :n] = torch.randn(8, n, generator=g)
    return x


def encoded(model, x):
    return model.get_encoder()(x).last_hidden_state


@given(spoken=st.integers(0, 300), stride=st.integers(1, 9))
def test_computed_positions_stand_for_all_of_them(spoken, stride):
    at, weight = computed_positions(spoken, 200, stride)
    assert float(weight.sum()) == pytest.approx(200, rel=1e-5)
    assert bool((at.diff() > 0).all())
    assert at[-1] == 199
    assert bool((weight[: min(spoken, 199)] == 1).all())
    if stride == 1:
        assert at.tolist() == list(range(200))


def test_stride_1_is_the_original_encoder():
    x, model = features(60, 131, 0), whisper()
    expected = encoded(model, x)
    assert isinstance(encoder_of(shorten(model, stride=1)), ShortAudioEncoder)
    torch.testing.assert_close(encoded(model, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [2, 5])
def test_audio_that_fills_the_window_is_computed_as_ever(stride):
    x, model = features(FRAMES), whisper()
    expected = encoded(model, x)
    torch.testing.assert_close(encoded(shorten(model, stride=stride), x), expected, atol=1e-5, rtol=1e-5)


def test_skipping_silence_stays_close_and_cutting_it_off_does_not():
    x, model = features(60, 100), whisper()
    expected = encoded(model, x)[:, :50]
    gap = {s: float((encoded(shorten(model, stride=s), x)[:, :50] - expected).norm()) for s in (2, 50)}
    assert gap[2] < 0.2 * gap[50] or gap[2] < 1e-4
    assert gap[2] < 0.02 * float(expected.norm())


def test_a_recording_does_not_depend_on_its_batch():
    x, model = features(40, 120, 250), shorten(whisper(), stride=3)
    together = encoded(model, x)
    for row in range(3):
        torch.testing.assert_close(encoded(model, x[row : row + 1])[0], together[row], atol=1e-5, rtol=1e-5)


def test_states_below_the_first_trained_layer_are_computed_once_and_change_nothing():
    x, model = features(40, 90), shorten(whisper(layers=3))
    model.requires_grad_(False)
    encoder = encoder_of(model)
    assert encoder.first_trained_layer() == 3
    encoder.layers[2].fc1.requires_grad_(True)
    assert encoder.first_trained_layer() == 2
    calls = []
    encoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    plain = encoded(model, x)
    plain.sum().backward()
    gradient = encoder.layers[2].fc1.weight.grad.clone()
    encoder.layers[2].fc1.weight.grad = None
    with encoder.keeping():
        for _ in range(3):
            kept = encoded(model, x.flip(0)).flip(0)
        kept.sum().backward()
    assert len(calls) == 2
    torch.testing.assert_close(kept, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder.layers[2].fc1.weight.grad, gradient, atol=1e-4, rtol=1e-4)
    encoder.conv1.bias.requires_grad_(True)
    assert encoder.first_trained_layer() == 0


def test_spoken_positions_reach_past_the_last_sound():
    assert spoken_positions(features(0, 1, 60, FRAMES), FRAMES // 2) == [2, 2, 32, FRAMES // 2]


def test_bad_strides_and_models_are_refused():
    with pytest.raises(ValueError, match="stride=0"):
        shorten(whisper(), stride=0)
    with pytest.raises(ValueError, match="no Whisper encoder"):
        shorten(bert())
    with pytest.raises(ValueError, match="399 mel frames"):
        encoded(shorten(whisper()), features(10)[..., :-1])
