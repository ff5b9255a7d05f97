"""Stages of a training: what is best, what is dead, what is the same for all of a tuple."""

import numpy as np
import pytest
import torch

from rankwise.vision.lit import snapshot
from rankwise.vision.lit import training as module
from rankwise.vision.lit.network import IlluminationNet
from rankwise.vision.lit.settings import LitSettings
from rankwise.vision.lit.towers import ImageTower
from rankwise.vision.lit.training import Best, Training, features, frozen, scores
from small_models import clip as small_clip

SMALL = {
    "network": "light", "start": "identity", "size_network": 32, "size_prompts": 32, "first_steps": 2, "warm_steps": 2,
    "network_steps": 2, "prompt_steps": 2, "rounds": 1, "batch_network": 2, "batch_prompts": 4, "lr_prompts": 1e-2,
    "lr_network": 1e-3, "extensions": 0,
}  # fmt: skip
RNG = np.random.default_rng(0)
WELL = RNG.integers(100, 256, (5, 40, 40, 3)).astype(np.uint8)
DARK = (RNG.integers(100, 256, (4, 40, 40, 3)) // 8).astype(np.uint8)
TOKENS = [47, 3, 3, 48]


@pytest.fixture(scope="module")
def tower():
    return ImageTower(small_clip(layers=2), (0.5,) * 3, (0.5,) * 3)


def trained(tower, **changes):
    return Training(tower, TOKENS, settings=LitSettings(**SMALL | changes)).run(DARK, WELL)


def test_the_best_is_a_copy_that_later_steps_leave():
    net, best = torch.nn.Linear(2, 2), Best()
    best.see(0.0, net)
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        net.weight.add_(1)
    assert all(torch.equal(best.state[k], kept[k]) for k in kept)
    best.see(-1.0, net)
    best.restore(net)
    assert torch.equal(net.weight, kept["weight"])


def test_a_stage_ends_at_the_best_that_was_seen_not_at_the_last(tower, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 1)
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL))
    states, values = [], iter([3.0, 1.0, 2.0])

    def loss():
        states.append(run.prompts.rows.detach().clone())
        return run.prompts.rows.sum() * 0 + run.prompts.rows.mean() * 1e-3 + next(values)

    run._stage("prompts", "x", run.prompts, run.by_prompts, loss, 3)
    assert torch.equal(run.prompts.rows, states[1])


def test_steps_are_added_while_the_loss_is_above_its_limit_up_to_a_bound(tower):
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL | {"extensions": 1}))
    seen = []

    def loss():
        seen.append(0)
        return run.prompts.rows.mean() + 9.0

    run._stage("prompts", "x", run.prompts, run.by_prompts, loss, 2, limit=1.0)
    assert len(seen) == 102
    seen.clear()
    run._stage("prompts", "x", run.prompts, run.by_prompts, loss, 2, limit=10.0)
    assert len(seen) == 2


def test_a_dead_start_is_drawn_anew(tower, monkeypatch):
    real = module.made

    def first_dead(settings):
        net = real(settings)
        if not made:
            with torch.no_grad():
                net.last.bias.fill_(-5.0)
        made.append(net)
        return net

    made = []
    monkeypatch.setattr(module, "made", first_dead)
    run = trained(tower)
    assert run.starts == 2
    assert run.network is made[1]


def test_starts_that_are_all_dead_are_an_error_that_names_the_way_out(tower, monkeypatch):
    real = module.made

    def dead(settings):
        net = real(settings)
        with torch.no_grad():
            net.last.bias.fill_(-5.0)
        return net

    monkeypatch.setattr(module, "made", dead)
    with pytest.raises(ValueError, match="start='identity'"):
        trained(tower)


def test_a_network_that_dies_in_a_round_begins_it_again_at_half_the_rate(tower, monkeypatch):
    real, passes = Training._pass, []

    def dies_once(self):
        passes.append(self.network.last.bias.detach().clone())
        batch = real(self)
        return batch._replace(light=batch.light * (len(passes) != 4))

    monkeypatch.setattr(Training, "_pass", dies_once)
    run = trained(tower)  # two passes of the warm-up, one of the round, then it dies
    assert run.rate == SMALL["lr_network"] / 2
    assert torch.equal(passes[2], passes[4])
    assert run.by_network.param_groups[0]["lr"] == run.rate


def test_a_network_that_always_dies_is_an_error(tower, monkeypatch):
    real = Training._pass
    monkeypatch.setattr(Training, "_warm_up", lambda self: None)
    monkeypatch.setattr(Training, "_pass", lambda self: real(self)._replace(light=torch.zeros(1)))
    with pytest.raises(ValueError, match="lower lr_network"):
        trained(tower)


def test_all_pictures_of_a_tuple_go_through_the_same_view(tower):
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL))
    one = (torch.rand(1, 3, 32, 32) * 255).to(torch.uint8)
    dark, result, well = run._drawn([[one, one], [one]], 6, same=True)
    assert torch.allclose(dark, result, atol=1e-5)
    assert torch.allclose(dark, well, atol=1e-5)
    assert not torch.allclose(dark[0], dark[1], atol=1e-5) or not torch.allclose(dark[0], dark[2], atol=1e-5)
    first, other = run._drawn([[one], [one]], 6)
    assert not torch.allclose(first, other, atol=1e-5)


def test_results_of_a_tuple_are_of_its_own_dark_pictures(tower):
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL | {"augment": False}))
    numbers = torch.arange(9.0)[:, None]
    dark, result, well = run._drawn([[numbers, numbers + 100], [numbers + 1000]], 50, same=True)
    assert torch.equal(dark + 100, result)
    assert not torch.equal(dark + 1000, well)


def test_features_computed_once_are_those_computed_each_time(tower):
    pictures = (torch.rand(7, 3, 32, 32) * 255).to(torch.uint8)
    once = Training(tower, TOKENS, settings=LitSettings(**SMALL | {"augment": False}))._seen(pictures)
    assert torch.allclose(once, tower(pictures.float() / 255).features.detach(), atol=1e-6)


@pytest.mark.parametrize("kept", [2**28, 0])
def test_content_of_dark_pictures_is_computed_once_where_it_fits_and_is_that_of_each_picture(tower, monkeypatch, kept):
    monkeypatch.setattr(module, "KEPT", kept)
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL | {"augment": False}))
    run._read(DARK, WELL)
    seen, real = [], run._stages
    monkeypatch.setattr(run, "_stages", lambda pictures: seen.append(len(pictures)) or real(pictures))
    for rows in (torch.tensor([3, 1]), torch.tensor([0, 3])):
        pictures = run.dark[rows].float() / 255
        for found, own in zip(run._content(rows, pictures), tower(pictures).stages, strict=True):
            torch.testing.assert_close(found, own.detach(), atol=1e-5, rtol=1e-5)  # other batches, other roundings
    assert seen == ([2, 4] if kept else [2, 2])


def test_scores_with_cached_text_features_are_those_picture_by_picture(tower):
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL))
    with torch.no_grad():
        run.prompts.rows.add_(0.1 * torch.randn(run.prompts.rows.shape))
        pictures = torch.rand(5, 3, 32, 32)
        single = [
            (100 * tower(p[None]).features @ run.prompts(tower.clip).T).softmax(1)[0, 0] for p in pictures
        ]  # fmt: skip
    assert torch.allclose(scores(tower, run.prompts, pictures, 100.0), torch.stack(single), atol=1e-5)


def test_a_clip_is_left_bit_for_bit_and_in_its_mode():
    clip = small_clip(layers=2).train()
    clip.logit_scale.requires_grad_(False)
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    trained(ImageTower(clip, (0.5,) * 3, (0.5,) * 3))
    assert all(torch.equal(v, before[k]) for k, v in clip.state_dict().items())
    assert all(p.grad is None for p in clip.parameters())
    assert clip.training
    assert [n for n, p in clip.named_parameters() if not p.requires_grad] == ["logit_scale"]


def test_a_frozen_model_is_thawed_after_an_error_too(tower):
    def fails():
        with frozen(tower.clip):
            assert not any(p.requires_grad for p in tower.clip.parameters())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert all(p.requires_grad for p in tower.clip.parameters())


def test_rounds_are_remembered_from_the_start_of_the_prompts_on(tower):
    run = trained(tower, rounds=2)
    assert [row["round"] for row in run.history] == [0, 1, 2]
    assert all(0 <= row[k] <= 1 for row in run.history for k in ("dark", "result", "well"))


def test_what_round_zero_sees_of_an_identity_start_is_the_dark_picture_itself(tower):
    run = trained(tower, rounds=0, warm_steps=1, lr_network=1e-9)
    assert run.history[0]["result"] == pytest.approx(run.history[0]["dark"], abs=0.05)


def test_prompts_learn_which_pictures_are_dark(tower):
    run = trained(tower, rounds=0, first_steps=60, augment=False)
    assert run.history[0]["dark"] > 0.9
    assert run.history[0]["well"] < 0.1


def test_labels_the_other_way_round_give_scores_the_other_way_round(tower):
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL | {"rounds": 0, "first_steps": 60, "augment": False}))
    run.run(WELL, DARK)
    assert float(scores(tower, run.prompts, run.well, 100.0).mean()) < 0.1  # the dark ones, called well-lit


def test_the_network_learns_light_from_prompts_that_know_it(tower):
    run = trained(tower, first_steps=60, network_steps=60, lr_network=1e-2, augment=False, identity_weight=0.0)
    results = run._results().float().mean()
    assert float(results) > 1.2 * float(run.dark_small.float().mean())


def test_a_seed_decides_every_draw(tower):
    first, again, other = (trained(tower, seed=s).network.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_training_draws_nothing_from_torchs_own_generator(tower):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(tower)
    assert torch.equal(torch.rand(3), expected)


def test_a_picture_of_both_kinds_is_refused(tower):
    run = Training(tower, TOKENS, settings=LitSettings(**SMALL))
    with pytest.raises(ValueError, match="well-lit picture 1 is among the dark ones too"):
        run.run(DARK, np.stack([WELL[0], DARK[2]]))


def test_a_loss_that_is_not_finite_is_refused(tower):
    with pytest.raises(ValueError, match="lower the learning rate"):
        trained(tower, lr_prompts=1e30, first_steps=5)


def test_the_released_settings_train_with_zeros_at_borders():
    net = module.made(LitSettings(released=True))
    assert isinstance(net, IlluminationNet)
    assert net.last.padding_mode == "zeros"


def test_own_stages_take_the_towers_place(tower):
    called = []

    def stages(pictures):
        called.append(len(pictures))
        return [pictures] * 5

    Training(tower, TOKENS, settings=LitSettings(**SMALL), stages=stages).run(DARK, WELL)
    assert set(called) == {2}


def test_many_pictures_are_seen_in_parts(tower):
    assert features(tower, torch.rand(40, 3, 32, 32)).shape == (40, 8)


def test_results_that_prompts_learn_from_are_bounded_as_what_is_enhanced(tower):
    run = trained(tower)
    with torch.no_grad():
        for p in run.network.parameters():
            p.zero_()
    expected = (run.dark_small.float() * 10).clamp(max=255).round()
    assert torch.equal(run._results().float(), expected)


@pytest.mark.parametrize("augment", [True, False])
def test_a_training_cut_short_in_a_round_goes_on_to_the_same_end(tower, tmp_path, monkeypatch, augment):
    changes = {"rounds": 3, "augment": augment}
    whole, real = trained(tower, **changes), Training._prompt_stage

    def cut(self, turn, results):
        real(self, turn, results)
        if turn == 3:
            raise KeyboardInterrupt

    settings, path = LitSettings(**SMALL | changes), tmp_path / "round.safetensors"
    monkeypatch.setattr(Training, "_prompt_stage", cut)
    with pytest.raises(KeyboardInterrupt):
        Training(tower, TOKENS, settings=settings).run(DARK, WELL, checkpoint=path)
    monkeypatch.setattr(Training, "_prompt_stage", real)
    monkeypatch.setattr(Training, "_warm_up", lambda self: pytest.fail("from the beginning"))
    again = Training(tower, TOKENS, settings=settings).run(DARK, WELL, checkpoint=path)
    assert all(torch.equal(v, whole.network.state_dict()[k]) for k, v in again.network.state_dict().items())
    assert torch.equal(again.prompts.rows, whole.prompts.rows)
    assert (again.history, again.starts) == (whole.history, whole.starts)


def test_what_goes_on_has_the_rate_that_was_halved(tower, tmp_path):
    settings, path = LitSettings(**SMALL), tmp_path / "round.safetensors"
    run = Training(tower, TOKENS, settings=settings)
    run.rate, run.starts = 1e-5, 4
    snapshot.write(path, run, [])
    again = Training(tower, TOKENS, settings=settings)
    assert snapshot.read(path, again) == []
    assert (again.rate, again.starts, again.by_network.param_groups[0]["lr"]) == (1e-5, 4, 1e-5)
