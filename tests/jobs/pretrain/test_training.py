"""Batches as they are cut, and two optimisers as one."""

import torch
from torch import nn

from rankwise.jobs.pretrain.models import caption_tokenizer, clip, vit
from rankwise.jobs.pretrain.training import MEAN, STD, MuonAdamW, jittered, normalised

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_a_jittered_image_is_a_cut_of_the_mirrored_one_flipped_or_not():
    image = torch.arange(3 * 8 * 8.0).view(1, 3, 8, 8)
    wide = nn.functional.pad(image, (4,) * 4, mode="reflect")[0]
    cuts = [wide[:, y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
    allowed = {tuple(c.flatten().tolist()) for cut in cuts for c in (cut, cut.flip(-1))}
    seen = {tuple(c.flatten().tolist()) for c in jittered(image.expand(2000, -1, -1, -1))}
    assert seen <= allowed
    assert len(seen) > 0.95 * len(allowed)


def test_normalised_pixels_have_mean_0_and_deviation_1_where_the_data_have_cifars():
    pixels = torch.stack([torch.full((4, 4), m + s) for m, s in zip(MEAN, STD, strict=True)])[None]
    torch.testing.assert_close(normalised(pixels), torch.ones(1, 3, 4, 4))


def test_both_models_fit_into_6_mb_of_float16_together():
    sizes = [sum(p.numel() for p in m.parameters()) for m in (vit(CLASSES, 32), clip(caption_tokenizer(CLASSES), 32))]
    assert sizes == [1_504_650, 1_314_849]
    assert 2 * sum(sizes) < 6e6


def test_matrices_of_blocks_are_muons_and_all_else_is_adamws_and_a_state_goes_on():
    def run(steps, state=None):
        torch.manual_seed(0)
        model = vit(CLASSES, 8)
        optimizer = MuonAdamW(model)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        for _ in range(steps):
            torch.manual_seed(1)
            model(pixel_values=torch.randn(4, 3, 8, 8), labels=torch.arange(4)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    model, optimizer = run(2)
    muon = {id(p) for p in optimizer.parts[0].param_groups[0]["params"]}
    inside = {id(p) for n, p in model.named_parameters() if ".layers." in n and n.endswith("weight") and p.ndim == 2}
    assert muon == inside
    groups = [p for g in optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, groups)) == sorted(id(p) for p in model.parameters())
    other = [p.detach().clone() for p in model.parameters()]
    half_way, half = run(1)
    again, _ = run(1, (half_way.state_dict(), half.state_dict()))
    for one, two in zip(other, again.parameters(), strict=True):
        torch.testing.assert_close(one, two.detach())


def test_a_schedule_reaches_both_parts():
    model = vit(CLASSES, 8)
    optimizer = MuonAdamW(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = [g["lr"] for part in optimizer.parts for g in part.param_groups]
    optimizer.step()
    schedule.step()
    assert [g["lr"] for part in optimizer.parts for g in part.param_groups] == [lr / 2 for lr in before]
