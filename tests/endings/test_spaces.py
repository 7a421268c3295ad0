"""The energy distance, and the spaces of a base's activations in which it is taken."""

from math import erf, exp, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmcore.endings.spaces import Hidden, Pixels, Scale, chosen, embedding, energy, scale_of
from fmcore.flow.fields import Convention
from fmcore.flow.paths import VP
from fmcore.models.folder import Trained
from fmcore.models.hidden import activations, taps
from fmcore.models.networks import MLP, UNet, initialised
from fmcore.score.points import energy_distance

pytestmark = pytest.mark.numerics
SEED = st.integers(0, 2**31)
UNIT = Scale(1.0, 1.0)


def trained(config, shape, classes=None, convention=None, null_label=None):
    """A network with weights that are not those of the start, at which ours are the identity."""
    network = initialised(config, shape, classes, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    network.eval().requires_grad_(False)
    return Trained(network, config, shape, classes, {}, "", convention or Convention(), null_label)


def test_energy_of_two_normals_is_that_of_the_closed_form():
    """Of means 0 and m: the lengths are those of folded normals."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, 1, generator=generator, dtype=torch.float64)
    m, same = 1.5, 2 / pi**0.5
    folded = 2 / pi**0.5 * exp(-(m**2) / 4) + m * erf(m / 2)
    scale = Scale(same, same)
    assert float(energy(x, y + m, scale)) == pytest.approx((2 * folded - 2 * same) / same, abs=0.05)
    assert float(energy(x, y, scale)) == pytest.approx(0, abs=0.02)


def test_energy_is_unbiased():
    """The mean over many draws from equal distributions is zero within its error; counting itself it is not."""
    generator = torch.Generator().manual_seed(0)
    same = 2 / pi**0.5
    draws = torch.randn(4000, 2, 6, 1, generator=generator, dtype=torch.float64)
    found = torch.stack([energy(x, y, Scale(same, same)) for x, y in draws])
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean())) < 4 * error
    assert error < 0.01
    counted = (
        torch.stack([2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - same for x, y in draws]) / same
    )
    assert float(counted.mean()) > 10 * error


@given(seed=SEED, dims=st.sampled_from([1, 3]))
def test_energy_is_its_sum_over_pairs_and_blind_to_order(seed, dims):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, dims, generator=generator, dtype=torch.float64) for n in (5, 7))
    cross = sum((x[i] - y[j]).norm() for i in range(5) for j in range(7)) / 35
    spread = sum((x[i] - x[j]).norm() for i in range(5) for j in range(5)) / 20
    scale = Scale(0.7, 1.0)
    torch.testing.assert_close(energy(x, y, scale), (2 * cross - spread) / 0.7 - 1)
    torch.testing.assert_close(energy(x.flip(0), y.flip(0), scale), energy(x, y, scale))


@pytest.mark.parametrize("labelled", [False, True])
def test_gradient_of_the_energy_agrees_with_finite_differences(labelled):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (6, 9))
    labels = (torch.arange(6) % 2, torch.arange(9) % 2) if labelled else (None, None)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: energy(rows, y, UNIT, *labels), x)


def test_scale_makes_the_energy_one_over_units():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, 4, generator=generator) + shift for shift in (0.0, 1.0))
    small, large = (energy(s * x, s * y, scale_of(s * y, None)) for s in (0.01, 100.0))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)
    scale = scale_of(y, None)
    pairs = [(y[i] - y[j]).norm() for i in range(50) for j in range(i)]
    assert scale.mean == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-4)


def test_with_labels_energy_tells_swapped_classes_apart():
    x = torch.cat([torch.zeros(50, 2), torch.ones(50, 2)])
    label = torch.arange(100) // 50
    scale = scale_of(x, label)
    right, swapped = energy(x, x, scale, label, label), energy(x, x, scale, label, 1 - label)
    assert float(right) == pytest.approx(0, abs=0.05)
    assert swapped > right + 0.3


def test_following_energy_downhill_reaches_the_data():
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.randn(200, 2, generator=generator) * 0.1 + c for c in (-1.0, 1.0)])
    x = (torch.randn(400, 2, generator=generator) * 0.1).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        energy(x, y, UNIT).backward()
        optimizer.step()
    assert energy_distance(x.detach(), y).value < 0.01
    assert abs(float((x[:, 0] > 0).float().mean()) - 0.5) < 0.1


@pytest.mark.parametrize("label", [None, torch.zeros(4, dtype=torch.long)])
def test_samples_that_meet_have_a_slope(label):
    x = torch.zeros(4, 3, requires_grad=True)
    energy(
        x, torch.zeros(5, 3), UNIT, label, None if label is None else torch.zeros(5, dtype=torch.long)
    ).backward()
    assert torch.isfinite(x.grad).all()


def test_an_mlp_offers_its_hidden_state_after_each_block():
    base = trained(MLP(16, 3), (2,))
    assert list(taps(base.network)) == ["block1", "block2", "block3"]
    x = torch.randn(5, 2)
    state = activations(base.network, ["block3"], lambda: base.network(x, torch.full((5,), 0.7), None))["block3"]
    gain = base.network.gain.weight  # what the hidden state does not explain of the output
    flat = base.network(x, torch.full((5,), 0.7), None) - base.network.leave(base.network.norm(state))
    ratio = flat / x
    torch.testing.assert_close(ratio, ratio[:1, :1].expand(5, 2), rtol=1e-3, atol=1e-3)
    assert gain.shape == (1, 64)


def test_a_unet_offers_the_last_block_of_each_level_on_the_way_up():
    base = trained(UNet((8, 16), layers=2), (1, 8, 8))
    assert list(taps(base.network)) == ["mid_block", "up_blocks.0.resnets.2", "up_blocks.1.resnets.2"]
    x = torch.randn(3, 1, 8, 8)
    found = activations(base.network, list(taps(base.network)), lambda: base.network(x, torch.ones(3), None))
    assert [tuple(found[name].shape[1:]) for name in found] == [(16, 4, 4), (16, 4, 4), (8, 8, 8)]


def test_the_pass_ends_at_the_last_block_and_leaves_no_hooks():
    base = trained(MLP(16, 3), (2,))
    ran = []
    handle = base.network.leave.register_forward_hook(lambda *_: ran.append("leave"))
    activations(base.network, ["block2"], lambda: base.network(torch.randn(5, 2), torch.zeros(5), None))
    assert not ran
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.network.modules())


def test_an_unknown_block_is_refused_and_the_others_named():
    base = trained(MLP(16, 1), (2,))
    for act in (
        lambda: embedding([Hidden("mid_block", 0.5)], base),
        lambda: activations(base.network, ["mid_block"], lambda: None),
    ):
        with pytest.raises(ValueError, match="unknown block 'mid_block': expected one of block1"):
            act()


def test_features_are_those_of_data_without_noise():
    """Of x at time t the base sees t x: where the linear path is if there is no noise, on its own path's scale."""
    x = torch.randn(4, 2)
    base = trained(MLP(16, 2), (2,))
    pixels, hidden = embedding([Pixels(), Hidden("block2", 0.6)], base, "fp32")(x, None)
    assert torch.equal(pixels, x)
    wanted = activations(base.network, ["block2"], lambda: base.network(0.6 * x, torch.full((4,), 0.6), None))
    assert torch.equal(hidden, wanted["block2"])

    path = VP()
    other = trained(MLP(16, 2), (2,), convention=Convention(path, "noise"))
    r = path.time_at(torch.tensor(0.6 / 0.4, dtype=torch.float64).log()).float()
    (hidden,) = embedding([Hidden("block2", 0.6)], other, "fp32")(x, None)
    wanted = activations(other.network, ["block2"], lambda: other.network(path(r).a * x, r.expand(4), None))
    torch.testing.assert_close(hidden, wanted["block2"])


def test_pooled_is_the_mean_over_positions():
    base = trained(UNet((8, 16)), (1, 8, 8))
    x = torch.randn(3, 1, 8, 8)
    whole, pooled = embedding([Hidden("mid_block", 0.5), Hidden("mid_block", 0.5, pooled=True)], base, "fp32")(
        x, None
    )
    torch.testing.assert_close(pooled, whole.reshape(3, 16, 16).mean(2))


def test_the_base_is_told_classes_or_that_there_are_none():
    x, label = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    base = trained(MLP(16, 2), (2,), classes=2, null_label=2)
    space = [Hidden("block2", 0.5)]
    by_class, by_none = embedding(space, base, "fp32")(x, label)[0], embedding(space, base, "fp32")(x, None)[0]
    assert not torch.allclose(by_class, by_none)
    assert torch.equal(by_none, embedding(space, base, "fp32")(x, torch.full((4,), 2))[0])
    with pytest.raises(ValueError, match="the base needs classes"):
        embedding(space, trained(MLP(16, 2), (2,), classes=2), "fp32")(x, None)


@pytest.mark.parametrize(("config", "shape"), [(MLP(16, 2), (4,)), (UNet((8, 16)), (1, 8, 8))])
def test_auto_takes_the_block_and_time_of_the_largest_energy(config, shape):
    base = trained(config, shape)
    generator = torch.Generator().manual_seed(0)
    ends, data = (0.5 * torch.randn(40, *shape, generator=generator) + shift for shift in (0.0, 0.6))
    choice = chosen(base, (ends, None), (data, None), "fp32")
    best = max(choice.energies, key=lambda space: choice.energies[space])
    for space, value in choice.energies.items():
        x, y = (embedding([space], base, "fp32")(rows, None)[0] for rows in (ends, data))
        assert value == pytest.approx(float(energy(x, y, scale_of(y, None))), rel=1e-4, abs=1e-6)
    earlier = Hidden(best.block, round(best.t * 2 / 3, 3))
    averaged = Hidden(best.block, earlier.t, pooled=True)
    assert choice.spaces == ((earlier, averaged) if len(shape) == 3 else (best, earlier))


def test_what_lies_outside_is_refused():
    with pytest.raises(ValueError, match=r"hidden needs t in \(0, 1\], got 0"):
        Hidden("block1", 0.0)
