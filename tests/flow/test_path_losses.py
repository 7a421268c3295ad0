"""The loss on every path: zero, finite and of unit size where it should be, and least for the exact field."""

import pytest
import torch

from fmcore.analytic import atoms_field, mixture_field, sample_mixture
from fmcore.flow.couplings import Pairs
from fmcore.flow.losses import Squared, flow_matching_loss
from fmcore.flow.paths import coefficients, interpolate
from path_examples import EXAMPLES, MIXTURES, each_path, gen, naming, pairs, times

pytestmark = pytest.mark.numerics


def one_pair(path, dims=3):
    x0, x1 = pairs(40, (dims,), 4)
    return Pairs(x0, x1[:1].expand_as(x1))


@each_path
def test_loss_of_the_conditional_velocity_is_zero(path):
    """One datum makes the velocity a function of x and t; its atom's field knows nothing of the noise drawn."""
    to_one = one_pair(path)
    t = 0.05 + 0.9 * torch.rand(40, generator=gen(), dtype=torch.float64)
    field = atoms_field(to_one.x1[:1], path)
    scale = flow_matching_loss(lambda x, t, label: torch.zeros_like(x), path, to_one, t, Squared()).mean()
    assert flow_matching_loss(field, path, to_one, t, Squared()).max() < 1e-18 * scale

    def against_time(x, t, label):
        return -field(x, t, label)

    assert flow_matching_loss(against_time, path, to_one, t, Squared()).mean() > scale


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_finite_at_both_ends_of_time(path, dtype):
    x0, x1 = (x.to(dtype) for x in pairs(2, (3,), 5))
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    loss = flow_matching_loss(lambda x, t, label: torch.zeros_like(x), path, Pairs(x0, x1), t, Squared())
    assert loss.isfinite().all()


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.normalised], ids=naming)
def test_normalised_loss_is_at_unit_size(path):
    """On VE it is the loss of noise prediction, at all scales alike."""
    x0, x1 = pairs(60, (3,), 6)
    guess = torch.randn(3, generator=gen(7), dtype=torch.float64).expand_as(x0)

    def field(x, t, label):
        _, _, da, ds = coefficients(path, t, x)
        assert not da.any()
        return ds * guess

    loss = flow_matching_loss(field, path, Pairs(x0, x1), times(path, 60), Squared())
    torch.testing.assert_close(loss, (guess - x0).square().mean(1))


DELTAS = {
    "constant": lambda v, x, t: 0.1 + 0 * v,
    "larger": lambda v, x, t: 0.1 * v,
    "smaller": lambda v, x, t: -0.1 * v,
    "later": lambda v, x, t: (0.2 * t - 0.1)[:, None] + 0 * v,
    "periodic": lambda v, x, t: 0.2 * (2 * x).sin(),
    "inwards": lambda v, x, t: -0.1 * torch.tanh(x),
    "crossed": lambda v, x, t: 0.1 * x.flip(1) / (1 + x.square()),
}


@each_path
def test_no_field_beats_the_loss_of_the_exact_one(path):
    """E|v + delta - u|^2 = E|v - u|^2 + E|delta|^2: the cross term vanishes, paired over the same draws."""
    count, g = 20_000, gen(8)
    drawn = Pairs(
        torch.randn((count, 2), generator=g, dtype=torch.float64), sample_mixture(*MIXTURES[2], count, g)
    )
    t = torch.rand(count, generator=g, dtype=torch.float64)
    exact = mixture_field(*MIXTURES[2], path)
    floor = flow_matching_loss(exact, path, drawn, t, Squared())
    for name, delta in DELTAS.items():
        loss = flow_matching_loss(
            lambda x, t, label, delta=delta: exact(x, t, None) + delta(exact(x, t, None), x, t),
            path,
            drawn,
            t,
            Squared(),
        )
        at = path.span[0] + (path.span[1] - path.span[0]) * t
        x, _ = interpolate(path, drawn.x0, drawn.x1, at)
        added = delta(exact(x, at, None), x, at).square().mean(1)
        if path.normalised:
            added = added / path(at).ds.square()
        excess = loss - floor
        assert excess.mean() > -5 * excess.std() / count**0.5, name
        cross = excess - added
        assert cross.mean().abs() < 5 * cross.std() / count**0.5, name
        assert added.mean() > 0

    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    each = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    loss = flow_matching_loss(
        lambda x, t, label: exact(x, t, None) + offset + each[:, None], path, drawn, t, Squared()
    )
    slope, slopes = torch.autograd.grad(loss.sum(), (offset, each))
    torch.testing.assert_close(slope, slopes.sum())
    assert slopes.mean().abs() < 5 * slopes.std() / count**0.5

    def against_time(x, t, label):
        return -exact(x, t, None)

    worse = flow_matching_loss(against_time, path, drawn, t, Squared()) - floor
    assert worse.mean() > 10 * worse.std() / count**0.5
