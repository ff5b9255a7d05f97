"""The network's size and shape, and the division."""

import pytest
import torch

from rankwise.vision.lit.network import IlluminationNet, enhanced


def test_the_published_network_has_as_many_parameters_as_published():
    assert sum(p.numel() for p in IlluminationNet().parameters()) == 278_790


def test_biases_are_those_of_the_four_plain_convolutions():
    sizes = {n: p.numel() for n, p in IlluminationNet().named_parameters() if n.endswith("bias")}
    assert sorted(sizes.values()) == [1, 32, 32, 64]


def test_it_stays_at_full_resolution_whatever_the_shape():
    assert IlluminationNet(8)(torch.rand(2, 3, 33, 47)).shape == (2, 1, 33, 47)


def test_illumination_is_never_negative():
    net = IlluminationNet(8)
    with torch.no_grad():
        net.last.bias.fill_(-0.01)
    assert float(net(torch.rand(1, 3, 40, 40)).detach().min()) >= 0


def test_an_identity_start_leaves_pictures_about_as_they_are():
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 48, 48)
    light = IlluminationNet(8, start="identity")(picture)
    assert float((light - 1).detach().abs().max()) < 0.5


def test_published_weights_are_drawn_with_a_deviation_of_a_fiftieth():
    torch.manual_seed(0)
    weights = torch.cat([p.flatten() for p in IlluminationNet().parameters() if p.dim() == 4])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.01)


def test_the_whole_picture_reaches_every_pixel_by_the_coarsest_bin():
    """So that a tile does not get what the whole gets."""
    torch.manual_seed(0)
    net, picture = IlluminationNet(8, start="identity").eval(), torch.rand(1, 3, 80, 80, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(picture)[0, 0, 0, 0], picture)
    assert float(gradient[..., 70:, 70:].abs().max()) > 0


def test_borders_of_plain_convolutions_are_reflected_or_zero():
    kinds = {c.padding_mode for c in IlluminationNet(8, padding="zeros").modules() if isinstance(c, torch.nn.Conv2d)}
    assert kinds == {"zeros", "reflect"}
    plain = [c for c in IlluminationNet(8).modules() if isinstance(c, torch.nn.Conv2d) and c.kernel_size == (3, 3)]
    assert {c.padding_mode for c in plain} == {"reflect"}


@pytest.mark.parametrize("width", [0, 6, 3])
def test_widths_that_the_pooling_cannot_share_are_refused(width):
    with pytest.raises(ValueError, match="multiple of 4"):
        IlluminationNet(width)


def test_an_illumination_of_one_leaves_a_picture_as_it_is():
    picture = torch.rand(1, 3, 8, 8)
    assert torch.allclose(enhanced(picture, torch.ones(1, 1, 8, 8)), picture)


def test_no_illumination_gives_finite_pixels():
    found = enhanced(torch.tensor([0.0, 1e-6, 1.0]), torch.zeros(3))
    assert found.isfinite().all()
    assert found.tolist() == [0.0, 1.0, 1.0]


def test_a_half_doubles_and_what_is_beyond_white_is_white():
    assert enhanced(torch.tensor([0.2, 0.7]), torch.tensor([0.5, 0.5])).tolist() == pytest.approx([0.4, 1.0])
