"""ViDA's adaptation: its rules written out by hand, state, undo, refusals."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from rankwise.continual import Augmentation, CoTTA, Settings, Tent, TestTimeAdapter, warm_up
from rankwise.continual.teacher import moving_average, restored, soft_cross_entropy
from rankwise.continual.vida import balanced, spread, symmetric
from rankwise.tuning import VidaConfig
from rankwise.tuning.vida import VidaLayer
from streams import Same, Shades, base, batches

SMALL = VidaConfig(r=1, r_high=4)


def adapter(model=None, *, config=SMALL, **options):
    options = {"preset": Settings(n_aug=3, augmentation=Shades())} | options
    return TestTimeAdapter(base() if model is None else model, adapter=config, **options)


def scales(model):
    return {pair for m in model.modules() if isinstance(m, VidaLayer) for pair in m.scaling.values()}


def branched(seed=1):
    """A model whose branches do something, so that scales matter."""
    torch.manual_seed(seed)
    model = get_peft_model(base(), VidaConfig(r=1, r_high=4, init_weights=False))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "_up" in name:
                p.mul_(0.3)
    return model


# --- the pure rules


def test_uncertainty_is_a_tenth_of_the_unbiased_variance():
    views = torch.tensor([[[0.0, 0.0]], [[2.0, 2.0]]])
    assert spread(views, "released").tolist() == pytest.approx([0.2])  # Var 2


def test_at_twice_the_logits_released_uncertainty_is_four_times_as_large_and_probabilities_stay_bounded():
    views = torch.randn(6, 5, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spread(2 * views, "released"), 4 * spread(views, "released"))
    for scale in (1, 2, 1e3):
        assert spread(scale * views, "probs").max() <= 1 + 1e-6
        assert spread(scale * views, "mc_dropout").max() <= 1


def test_uncertainty_of_probabilities_and_passes_follow_their_formulas():
    views = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    p = views.softmax(-1).numpy()
    assert spread(views, "probs").numpy() == pytest.approx(p.var(0, ddof=1).sum(-1))
    assert spread(views, "mc_dropout").numpy() == pytest.approx((((p - p.mean(0)) ** 2).sum(-1).mean(0)) ** 0.5)


@given(st.floats(0, 3), st.floats(0, 1))
def test_the_wide_branch_is_turned_up_from_theta_on_and_the_narrow_one_below(U, theta):
    low, high = balanced(U, theta)
    assert (low, high) == ((1 - U, 1 + U) if theta <= U else (1 + U, 1 - U))
    pair = balanced(torch.tensor([U], dtype=torch.float64), theta)
    assert (float(pair[0]), float(pair[1])) == (low, high)


def test_at_theta_itself_the_wide_branch_is_turned_up_and_just_below_the_narrow_one():
    theta = 0.25
    assert balanced(theta, theta) == (0.75, 1.25)
    below = math.nextafter(theta, 0)
    assert balanced(below, theta) == (1 + below, 1 - below)


def test_clipped_uncertainty_makes_no_scale_negative():
    assert balanced(1.7, 0.1, clip=True) == (0.0, 2.0)
    assert [t.tolist() for t in balanced(torch.tensor([1.7, 0.5]), 0.1, clip=True)] == [[0.0, 0.5], [2.0, 1.5]]


def test_the_gradient_of_the_loss_is_the_difference_of_probabilities():
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    soft_cross_entropy(student, teacher).backward()
    torch.testing.assert_close(student.grad, (student.detach().softmax(1) - teacher.softmax(1)) / 5)


def test_the_symmetric_loss_has_the_gradient_that_finite_differences_give():
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, generator=g).double() for _ in range(2))
    student.requires_grad_()
    torch.autograd.gradcheck(lambda s: symmetric(s, teacher), student)
    p, q = student.detach().softmax(1), teacher.softmax(1)
    torch.testing.assert_close(symmetric(student, teacher).detach(), -(q * p.log() + p * q.log()).sum(1).mean() / 2)


@given(st.floats(0, 1))
def test_a_moving_average_goes_by_name_not_by_order(alpha):
    teacher = {"a": torch.zeros(2), "b": torch.ones(3)}
    student = {"b": torch.full((3,), 3.0), "a": torch.full((2,), 2.0)}
    moving_average(teacher, student, {"b": alpha, "a": 0.5})
    assert teacher["a"].tolist() == [1.0, 1.0]
    torch.testing.assert_close(teacher["b"], torch.full((3,), alpha + 3 * (1 - alpha)))


def test_numbers_return_to_the_start_at_their_rate():
    source, now = {"w": torch.zeros(100_000)}, {"w": torch.ones(100_000)}
    g = torch.Generator().manual_seed(0)
    restored(now, source, 0.1, lambda like: torch.rand(like.shape, generator=g))
    back = int((now["w"] == 0).sum())
    assert abs(back - 10_000) < 5 * (100_000 * 0.1 * 0.9) ** 0.5
    assert set(now["w"].unique().tolist()) == {0.0, 1.0}


# --- one batch


def test_three_batches_are_the_published_loop_written_out():
    model, settings = branched(), {"lr": 1e-2, "lr_vida": 3e-2, "optimizer": "sgd", "momentum": 0.0}
    student, teacher = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    mine = TestTimeAdapter(
        model, preset=Settings(n_aug=3, augmentation=Shades(), alpha=0.9, alpha_vida=0.6, theta=0.05, **settings)
    )
    draws = torch.Generator().manual_seed(0)
    for x in batches():
        with torch.no_grad():
            views = torch.stack([teacher(x * float(torch.rand(1, generator=draws))).logits for _ in range(3)])
        U = 0.1 * float(views.var(0, unbiased=True).mean())
        low, high = (1 - U, 1 + U) if U >= 0.05 else (1 + U, 1 - U)
        for one in (student, teacher):
            one.base_model.set_scales(low, high)
        with torch.no_grad():
            expected = teacher(x).logits
        student.requires_grad_(True)
        z = student(x).logits
        loss = -(expected.softmax(1) * z.log_softmax(1)).sum() / len(x)
        student.zero_grad()
        loss.backward()
        with torch.no_grad():
            theirs = dict(teacher.named_parameters())
            for name, p in student.named_parameters():
                if p.grad is not None:
                    p -= (3e-2 if "vida_" in name else 1e-2) * p.grad
                a = 0.6 if "vida_" in name else 0.9
                theirs[name].copy_(a * theirs[name] + (1 - a) * p)
        torch.testing.assert_close(mine.predict(x), expected, atol=1e-5, rtol=1e-4)
        assert mine.last.uncertainty == pytest.approx(U, rel=1e-4)
        assert mine.scales == pytest.approx((low, high), rel=1e-4)
    for one, other in ((mine.model, student), (mine.teacher, teacher)):
        others = dict(other.named_parameters())
        for name, p in one.named_parameters():
            torch.testing.assert_close(p, others[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("theta", "turned_up"), [(0.0, "high"), (1e9, "low")])
def test_both_scales_move_in_both_models(theta, turned_up):
    mine = adapter(branched(), config=None, theta=theta)
    mine.predict(batches(1)[0])
    U = mine.last.uncertainty
    assert U > 0
    expected = (1 - U, 1 + U) if turned_up == "high" else (1 + U, 1 - U)
    assert scales(mine.model) == scales(mine.teacher) == {expected}


def test_the_inverted_control_turns_the_other_branch_up():
    one, other = (adapter(branched(), config=None, homeostasis=h) for h in ("on", "inverted"))
    for a in (one, other):
        a.predict(batches(1)[0])
    assert scales(one.model) == {tuple(reversed(next(iter(scales(other.model)))))}


def test_the_released_code_leaves_the_wide_scale_at_one():
    mine = adapter(branched(), config=None, compat="released", theta=0.0)
    mine.predict(batches(1)[0])
    assert scales(mine.model) == scales(mine.teacher) == {(1 - mine.last.uncertainty, 1.0)}


def test_views_that_agree_leave_the_scales_at_one():
    mine = adapter(augmentation=Same())
    mine.predict(batches(1)[0])
    assert mine.last == (0.0, 1.0, 1.0)


def test_without_homeostasis_no_view_is_drawn():
    class Never(Augmentation):
        def __call__(self, *_, **__):
            raise AssertionError

    mine = adapter(homeostasis="off", augmentation=Never())
    mine.predict(batches(1)[0])
    assert mine.scales == (1.0, 1.0)


@pytest.mark.parametrize("confident", [0.0, 1.0])
def test_views_are_left_out_where_the_teacher_is_confident_enough(confident):
    mine = adapter(confident=confident)
    mine.predict(batches(1)[0])
    assert (mine.last.uncertainty == 0) == (confident == 0.0)


@pytest.mark.parametrize("chunk", [1, 4, 8, 1000])
def test_views_in_chunks_are_the_same_views(chunk):
    one, other = adapter(branched(), config=None, chunk=chunk), adapter(branched(), config=None)
    x = batches(1)[0]
    torch.testing.assert_close(one.predict(x), other.predict(x), atol=1e-5, rtol=1e-5)
    assert one.last.uncertainty == pytest.approx(other.last.uncertainty, rel=1e-4)


def test_the_prediction_is_made_before_the_step():
    model, x = base(), batches(1)[0]
    expected = model(x).logits
    mine = adapter(model, lr=1e-2, lr_vida=1e-2, alpha=0.0, alpha_vida=0.0)
    torch.testing.assert_close(mine.predict(x).detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mine.predict(x), expected, atol=1e-3)


def test_predicting_without_adapting_changes_nothing():
    mine, x = adapter(), batches(1)[0]
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    torch.testing.assert_close(mine.predict(x, adapt=False), base()(x).logits.detach(), atol=1e-5, rtol=1e-5)
    after = mine.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert mine.seen == 0


def test_backbone_and_branches_move_by_rates_of_their_own():
    """One step of SGD by hand."""
    mine = adapter(branched(), config=None, optimizer="sgd", momentum=0.0, lr=0.3, lr_vida=0.02, homeostasis="off")
    twin = copy.deepcopy(mine.model).requires_grad_(True)
    x = batches(1)[0]
    out = twin(x).logits
    soft_cross_entropy(out, out.detach()).backward()
    gradients = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
    before = {n: p.detach().clone() for n, p in mine.trained.items()}
    mine.predict(x)
    for name, gradient in gradients.items():
        rate = 0.02 if "vida_" in name else 0.3
        torch.testing.assert_close(mine.trained[name].detach(), before[name] - rate * gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_teacher_is_frozen_at_an_alpha_of_one_and_copies_the_student_at_zero(alpha):
    mine = adapter(alpha=alpha, alpha_vida=alpha, lr=1e-2, lr_vida=1e-2)
    for x in batches(2):
        mine.predict(x)
    teacher = dict(mine.teacher.named_parameters())
    for name, p in mine.trained.items():
        assert torch.equal(teacher[name], mine.source[name] if alpha else p), name
    assert any(not torch.equal(p, mine.source[n]) for n, p in mine.trained.items())


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_everything_or_nothing_is_restored(rate):
    mine = adapter(restore=rate, lr=1e-2, lr_vida=1e-2)
    mine.predict(batches(1)[0])
    same = [torch.equal(p, mine.source[n]) for n, p in mine.trained.items()]
    assert all(same) == bool(rate)


def test_what_is_restored_is_the_state_after_the_warm_up():
    source = [(x, torch.tensor([0, 1, 2, 3])) for x in batches(3, seed=5)]
    warmed = warm_up(base(), source, adapter=SMALL, lr=0.1)
    start = {n: p.detach().clone() for n, p in warmed.named_parameters()}
    assert any(p.any() for n, p in start.items() if "_up" in n)
    mine = TestTimeAdapter(warmed, preset=Settings(n_aug=2, restore=1.0, lr=0.1, lr_vida=0.1))
    mine.predict(batches(1)[0])
    assert all(torch.equal(p, start[n]) for n, p in mine.model.named_parameters())


def test_the_warm_up_trains_the_branches_alone_and_lowers_the_loss():
    model, x, y = base(), batches(1)[0], torch.tensor([0, 1, 2, 3])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = F.cross_entropy(model(x).logits, y)
    warmed = warm_up(model, [(x, y)] * 20, adapter=SMALL, lr=0.05)
    assert F.cross_entropy(warmed(x).logits, y) < 0.7 * loss
    for name, p in warmed.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert "vida_" in name or torch.equal(p, before[plain]), name
    with pytest.raises(ValueError, match="empty"):
        warm_up(base(), [])


def test_adapters_alone_leave_the_backbone_bit_for_bit():
    mine = adapter(train="adapters", lr_vida=1e-2, restore=0.1)
    for x in batches():
        mine.predict(x)
    plain = dict(base().named_parameters())
    for name, p in mine.model.named_parameters():
        if "vida_" not in name:
            own = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(p, plain[own]), name
    assert not any(torch.equal(p, mine.source[n]) for n, p in mine.trained.items() if "_up" in n)


def test_scales_of_each_picture_follow_its_own_uncertainty():
    mine, x = adapter(branched(), config=None, per_sample=True), batches(1)[0]
    alone = []
    for i in range(len(x)):
        one = adapter(branched(), config=None)
        alone.append((one.predict(x[i : i + 1]), one.last.uncertainty))
    said = mine.predict(x)
    torch.testing.assert_close(said, torch.cat([a for a, _ in alone]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.last.uncertainty, torch.tensor([u for _, u in alone]), atol=1e-5, rtol=1e-3)
    mine.predict(x[:3])  # another number of rows
    assert mine.predict(x[:2], adapt=False).shape == (2, 5)


# --- streams, state, undo


def test_a_stream_gives_each_batch_with_its_logits_and_labels_are_not_read():
    loader = torch.utils.data.DataLoader(
        [{"pixel_values": x[0], "labels": torch.tensor(99)} for x in batches(5, 1)], batch_size=2
    )
    mine, plain = adapter(), adapter()
    found = [(b["labels"].shape[0], y) for b, y in mine.stream(loader)]
    assert [n for n, _ in found] == [2, 2, 1]
    for (_, y), x in zip(found, torch.cat(batches(5, 1)).split(2), strict=True):
        torch.testing.assert_close(y, plain.predict([x, torch.zeros(len(x))]))
    assert mine.seen == 3


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"train": "adapters"}, {"restore": 0.0}])
def test_a_saved_state_goes_on_as_if_it_had_not_stopped(tmp_path, options):
    settings = Settings(**{"n_aug": 2, "restore": 0.1, "lr": 1e-3, "lr_vida": 1e-3} | options)
    mine, xs = adapter(preset=settings), batches(4)
    for x in xs[:2]:
        mine.predict(x)
    mine.save(tmp_path / "state")
    expected = [mine.predict(x) for x in xs[2:]]
    again = adapter(preset=settings).load(tmp_path / "state")
    assert (again.seen, again.scales) == (2, pytest.approx(again.scales))
    for x, y in zip(xs[2:], expected, strict=True):
        assert torch.equal(again.predict(x), y)
    assert sorted(p.suffix for p in (tmp_path / "state").iterdir()) == [".json", ".json", ".safetensors"]


def test_a_state_of_other_settings_or_another_model_is_refused(tmp_path):
    adapter().save(tmp_path / "state")
    with pytest.raises(ValueError, match=r"other settings.*theta"):
        adapter(theta=0.3).load(tmp_path / "state")
    other = base()
    with torch.no_grad():
        other.classifier.bias.add_(1)
    with pytest.raises(ValueError, match=r"other weights: .*classifier\.bias differs"):
        adapter(other).load(tmp_path / "state")
    with pytest.raises(ValueError, match="another model"):
        adapter(config=VidaConfig(r=2, r_high=4)).load(tmp_path / "state")
    with pytest.raises(ValueError, match=r"state\.json is missing"):
        adapter().load(tmp_path)


@pytest.mark.parametrize("damage", ["moment", "generator"])
def test_a_damaged_state_changes_nothing(damage):
    mine = adapter(lr=1e-2, lr_vida=1e-2)
    mine.predict(batches()[0])
    state = {k: v.clone() for k, v in mine.state_dict().items()}
    if damage == "moment":
        state[next(k for k in reversed(state) if k.endswith(".exp_avg"))].fill_(float("nan"))
    else:
        state["generator"].fill_(255)
    again = adapter(lr=1e-2, lr_vida=1e-2)
    before = {k: v.clone() for k, v in again.state_dict().items()}
    with pytest.raises(ValueError, match="damaged"):
        again.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in again.state_dict().items())


def test_a_reset_forgets_all_batches():
    mine, xs = adapter(lr=1e-2, lr_vida=1e-2, restore=0.1), batches()
    first = [mine.predict(x) for x in xs]
    mine.reset()
    assert mine.scales == (1.0, 1.0)
    for x, y in zip(xs, first, strict=True):
        assert torch.equal(mine.predict(x), y)


def test_episodes_do_not_depend_on_their_order():
    mine, xs = adapter(lr=1e-2, lr_vida=1e-2, episodic=True, restore=0.5), batches()
    forwards = [mine.predict(x) for x in xs]
    backwards = [mine.predict(x) for x in reversed(xs)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_a_released_model_is_as_it_was_given(training):
    model = base().train(training)
    model.classifier.bias.requires_grad_(False)
    mine = adapter(model, lr=1e-2, lr_vida=1e-2)
    for x in batches():
        mine.predict(x)
    back = mine.release()
    assert back is model
    assert not any(isinstance(m, VidaLayer) for m in back.modules())
    flags = {n: p.requires_grad for n, p in back.named_parameters()}
    assert [n for n, f in flags.items() if not f] == ["classifier.bias"]
    assert all(m.training == training for m in back.modules())
    plain = dict(base().named_parameters())
    assert all(torch.equal(p, plain[n]) for n, p in back.named_parameters())


def test_a_released_warmed_up_model_keeps_its_branches():
    warmed = branched()
    x = batches(1)[0]
    expected = warmed.eval()(x).logits
    mine = TestTimeAdapter(warmed, preset=Settings(n_aug=2, lr=1e-2))
    mine.predict(x)
    back = mine.release()
    assert isinstance(back, PeftModel)
    assert torch.equal(back(x).logits, expected)


def test_a_seed_decides_the_stream():
    def run(seed):
        torch.manual_seed(0)
        mine = TestTimeAdapter(base(), adapter=SMALL, preset=Settings(n_aug=2, lr=1e-2, restore=0.5, seed=seed))
        torch.manual_seed(seed + 10)  # draws of others change nothing
        return torch.cat([mine.predict(x) for x in batches()])

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_the_wide_branch_starts_silent_and_norms_tell_what_each_says():
    mine = adapter()
    assert mine.norms() == (0.0, 0.0)
    model = branched()
    mine = adapter(model, config=None)
    layers = [m for m in model.modules() if isinstance(m, VidaLayer)]
    for which, side in enumerate(("low", "high")):
        parts = [getattr(m, f"vida_{side}_up")["default"] @ getattr(m, f"vida_{side}_down")["default"] for m in layers]
        assert mine.norms()[which] == pytest.approx(torch.cat([p.flatten() for p in parts]).norm().item(), rel=1e-5)


def test_pixels_of_any_mean_and_scale_are_seen_in_their_colours():
    mean, std = [0.2, 0.5, 0.4], [0.3, 0.2, 0.25]
    seen = []

    class Watching(Augmentation):
        def __call__(self, pixels, views, *, generator):
            seen.append(pixels)
            return pixels.expand(views, *pixels.shape)

    x = batches(1)[0]
    m, s = (torch.tensor(t).view(3, 1, 1) for t in (mean, std))
    mine = adapter(mean=mean, std=std, augmentation=Watching())
    mine.predict((x - m) / s)
    torch.testing.assert_close(seen[0], x, atol=1e-5, rtol=0)
    assert mine.last.uncertainty == pytest.approx(0, abs=1e-9)


# --- other models


def words(dropout):
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(config)


TEXTS = {"input_ids": torch.tensor([[3, 1, 4], [1, 5, 9]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}


def test_texts_are_adapted_to_by_dropout_and_views_of_them_are_refused():
    mine = TestTimeAdapter(words(0.2), adapter=SMALL, uncertainty="mc_dropout", lr=1e-2)
    first = mine.predict(TEXTS)
    assert mine.last.uncertainty > 0
    assert not torch.equal(mine.predict(TEXTS), first)
    assert not any(m.training for m in mine.teacher.modules())
    again = TestTimeAdapter(words(0.2), adapter=SMALL, uncertainty="mc_dropout", lr=1e-2)
    torch.manual_seed(7)
    assert torch.equal(again.predict(TEXTS), first)
    with pytest.raises(ValueError, match=r"no pixel_values.*mc_dropout"):
        TestTimeAdapter(words(0.2), adapter=SMALL).predict(TEXTS)


def test_dropout_of_zero_tells_nothing_and_is_refused_unless_another_is_given():
    with pytest.raises(ValueError, match="no dropout above 0"):
        TestTimeAdapter(words(0.0), adapter=SMALL, uncertainty="mc_dropout")
    mine = TestTimeAdapter(words(0.0), adapter=SMALL, uncertainty="mc_dropout", dropout=0.3)
    mine.predict(TEXTS)
    assert mine.last.uncertainty > 0
    assert {m.p for m in mine.teacher.modules() if isinstance(m, nn.Dropout)} == {0.0}


class Convolved(nn.Module):
    """A batch norm and a linear head, on plain tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_batch_norms_take_the_batchs_statistics_and_get_their_own_back():
    model = Convolved().eval()
    mean = model.norm.running_mean.clone()
    mine = TestTimeAdapter(model, adapter=VidaConfig(r=1, r_high=2, target_modules=["head"]), lr=0.0, lr_vida=0.0)
    x = batches(1)[0]
    torch.testing.assert_close(mine.predict(x), Convolved().train()(x).detach(), atol=1e-5, rtol=1e-5)
    with pytest.warns(UserWarning, match="single picture"):
        mine.predict(x[:1])
    back = mine.release()
    assert back.norm.track_running_stats
    assert torch.equal(back.norm.running_mean, mean)


def test_a_batch_of_one_of_a_transformer_is_served_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert adapter().predict(batches(1, 1)[0]).shape == (1, 5)


def test_bfloat16_is_close():
    one, other = adapter(branched(), config=None), adapter(branched(), config=None, precision="bf16")
    x = batches(1)[0]
    a, b = one.predict(x), other.predict(x)
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    # each rounding is off by up to 2⁻⁹ of a number; those of two layers and their branches add up to some of them
    torch.testing.assert_close(a, b, atol=8 * 2**-8 * float(a.abs().max()), rtol=0)


# --- what goes wrong


def test_a_state_that_went_wrong_is_given_up_and_the_beginnings_answer_given():
    mine, x = adapter(), batches(1)[0]
    expected = mine.predict(x, adapt=False)
    with torch.no_grad():
        for p in (*mine.trained.values(), *mine.teacher.parameters()):
            p.fill_(float("nan"))
    with pytest.warns(UserWarning, match="not finite at batch 1"):
        found = mine.predict(x)
    assert torch.equal(found, expected)
    assert (mine.seen, mine.skipped) == (1, 1)
    assert all(torch.isfinite(p).all() for p in mine.model.parameters())


def test_a_gradient_that_is_not_finite_teaches_nothing():
    mine, x = adapter(lr=1e-2), batches(1)[0]
    mine.trained[next(n for n in mine.trained if "vida_low_up" in n)].register_hook(lambda g: g * float("inf"))
    with pytest.warns(UserWarning, match="a gradient is not finite"):
        mine.predict(x)
    assert all(torch.equal(p, mine.source[n]) for n, p in mine.trained.items())
    assert mine.skipped == 1


def test_uncertainty_of_one_or_more_is_told():
    with torch.no_grad():
        model = base()
        model.classifier.weight.mul_(100)
    mine = adapter(model)
    with pytest.warns(UserWarning, match="clip=True"):
        mine.predict(batches(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mine = adapter(model=mine.release(), clip=True)
        mine.predict(batches(1)[0])
    assert mine.scales in ((0.0, 2.0), (2.0, 0.0))


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (torch.rand(0, 3, 32, 32), "without rows"),
        ([], "without rows"),
        ("cat.png", "without rows"),
        (torch.full((2, 3, 32, 32), float("nan")), "not finite"),
        (torch.randn(2, 3, 32, 32), "mean and std are needed"),
        (torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8), "uint8"),
    ],
)
def test_batches_that_cannot_be_served_are_named(batch, match):
    with pytest.raises(ValueError, match=match):
        adapter().predict(batch)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "cifar10"}, "unknown preset 'cifar10'.*cifar10c"),
        ({"thetta": 0.1}, "unknown setting 'thetta'.*theta"),
        ({"n_aug": 1}, "n_aug=1"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"restore": -0.1}, "restore=-0.1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"loss": "kl"}, "unknown loss 'kl'"),
        ({"dropout": 0.1}, "mc_dropout"),
        ({"confident": 0.9, "per_sample": True}, "per_sample"),
        ({"mean": [0.5, 0.5, 0.5]}, "together"),
        ({"mean": [0.5], "std": [0.5]}, "three numbers"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "std above 0"),
        ({"seed": -1}, "seed=-1"),
        ({"chunk": 0}, "chunk=0"),
    ],
)
def test_settings_that_mean_nothing_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        TestTimeAdapter(base(), **options)


def test_other_adapters_and_models_without_logits_are_refused():
    with pytest.raises(ValueError, match="LORA"):
        TestTimeAdapter(get_peft_model(base(), LoraConfig(target_modules=["q_proj"])))
    with pytest.raises(ValueError, match="adapter= is given too"):
        TestTimeAdapter(branched(), adapter=SMALL)
    with pytest.raises(ValueError, match="logits"):
        adapter(base().vit).predict(batches(1)[0])


def test_presets_are_the_released_ones():
    def told(name):
        s = TestTimeAdapter.presets[name]
        return s.optimizer, s.lr, s.lr_vida, s.theta, s.alpha, s.alpha_vida, s.restore, s.loss, s.n_aug

    assert told("cifar10c") == ("adam", 1e-4, 1e-5, 0.05, 0.999, 0.999, 0.1, "ce", 10)
    assert told("cifar100c") == ("adam", 3e-4, 1e-6, 0.05, 0.999, 0.999, 0.1, "ce", 10)
    assert told("imagenetc") == ("sgd", 5e-7, 2e-7, 0.2, 0.999, 0.8, 0.0, "symmetric", 10)
    momentum = TestTimeAdapter(base(), adapter=SMALL, preset="imagenetc").optimizer.param_groups
    assert [(g["momentum"], g["nesterov"], g["weight_decay"], g["lr"]) for g in momentum] == [
        (0.9, True, 0, 5e-7),
        (0.9, True, 0, 2e-7),
    ]


# --- models as people have them


def told_of(model):
    return [(n, p.requires_grad) for n, p in model.named_parameters()], [m.training for m in model.modules()]


@pytest.mark.parametrize("kind", [TestTimeAdapter, CoTTA, Tent])
def test_a_model_that_has_adapters_already_is_refused_and_the_first_can_still_be_released(kind):
    model = base()
    before = copy.deepcopy(model.state_dict())
    first = adapter(model)
    first.predict(batches(1)[0])
    with pytest.raises(ValueError, match=r"has adapters already: merge or unload them first, or release\(\)"):
        kind(model)
    after = first.release().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_branches_alone_are_refused_too_where_adapters_lie_in_the_model():
    model = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), base())
    with pytest.raises(ValueError, match="has adapters already"):
        adapter(model, train="adapters")
    with pytest.raises(ValueError, match="has adapters already"):
        warm_up(model, [(batches(1)[0], torch.zeros(4, dtype=torch.long))])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TestTimeAdapter, {"uncertainty": "mc_dropout"}),
        (TestTimeAdapter, {"adapter": VidaConfig(target_modules=["nowhere"])}),
        (Tent, {}),
        (CoTTA, {}),
    ],
)
def test_a_model_that_is_refused_is_as_it_was(kind, options):
    model = words(0.0).train() if kind is TestTimeAdapter else base().to(torch.bfloat16)
    before = told_of(model)
    with pytest.raises(ValueError):
        kind(model, **options)
    assert told_of(model) == before


def test_a_warm_up_without_batches_leaves_the_model():
    model = base()
    before = told_of(model)
    with pytest.raises(ValueError, match="batches is empty"):
        warm_up(model, [])
    assert told_of(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [TestTimeAdapter, CoTTA, Tent])
def test_parameters_of_half_precision_that_would_have_to_move_are_refused_by_name(kind, dtype):
    with pytest.raises(ValueError, match=rf"(weight|embeddings\.\w+) is {str(dtype)[6:]}.*model\.float\(\)"):
        kind(base().to(dtype))


def test_branches_alone_move_beside_a_backbone_of_half_precision():
    mine = adapter(base().to(torch.bfloat16), train="adapters")
    assert {p.dtype for p in mine.trained.values()} == {torch.float32}
    for x in batches(2):
        assert torch.isfinite(mine.predict(x.to(torch.bfloat16))).all()
    assert any(not torch.equal(p, mine.source[n]) for n, p in mine.trained.items())


@pytest.mark.parametrize("kind", [TestTimeAdapter, CoTTA, Tent])
def test_inference_mode_around_it_changes_nothing(kind):
    def answers(model, xs):
        mine = kind(model, preset=Settings(n_aug=2, augmentation=Shades(), lr=1e-2))
        return [mine.predict(x) for x in xs]

    expected, model = answers(base(), batches(3)), base()
    with torch.inference_mode():
        found = answers(model, batches(3))
        with pytest.raises(ValueError, match="make it outside"):
            kind(base())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (Tent, {"theta": 0.3}), (Tent, {"alpha": 0.5}), (CoTTA, {"lr_vida": 0.1}), (CoTTA, {"uncertainty": "probs"}),
        (TestTimeAdapter, {"threshold": 0.5}),
    ],
)  # fmt: skip
def test_a_setting_that_a_method_does_not_read_is_refused(kind, option):
    with pytest.raises(ValueError, match=rf"{kind.__name__} has no use for {next(iter(option))}; it reads"):
        kind(base(), **option)
