"""Distances and the flow-matching loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import mse_loss

from fmcore.flow.couplings import Pairs
from fmcore.flow.losses import DISTANCES, WEIGHTINGS, PseudoHuber, Squared, flow_matching_loss
from fmcore.flow.paths import LINEAR, PATHS, VE, Discrete, interpolate

pytestmark = pytest.mark.numerics

SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
SEED = st.integers(0, 2**31)
DISTANCES = {name: kind for name, kind in DISTANCES.items() if name != "lpips"}  # test_perceptual.py
PATHS = {name: Discrete((0.9, 0.5, 0.01)) if kind is Discrete else kind() for name, kind in PATHS.items()}


def between(distance, a, b):
    """The distance of two velocities, wherever and whenever."""
    return distance(a, b, a, a.new_zeros(len(a)))


@pytest.mark.parametrize("name", DISTANCES)
@given(shape=SHAPES, seed=SEED)
def test_distance_is_one_number_a_sample(name, shape, seed):
    distance = DISTANCES[name]()
    a, b = torch.randn((2, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = between(distance, a, b)
    assert values.shape == shape[:1]
    assert (values > 0).all()
    torch.testing.assert_close(values, between(distance, b, a))
    torch.testing.assert_close(
        values, torch.cat([between(distance, a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    )
    torch.testing.assert_close(values, between(distance, a.flatten(1), b.flatten(1)))
    torch.testing.assert_close(between(distance, a, a), torch.zeros_like(values), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_has_a_finite_gradient_at_zero(name):
    a = torch.ones(2, 3, requires_grad=True)
    between(DISTANCES[name](), a, torch.ones(2, 3)).sum().backward()
    assert torch.equal(a.grad, torch.zeros(2, 3))


def test_squared_is_the_mean_squared_error():
    a, b = torch.randn((2, 5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(between(Squared(), a, b).mean(), mse_loss(a, b))


@pytest.mark.parametrize("dims", [1, 2, 48])
def test_pseudo_huber_by_hand(dims):
    """With |a - b| = sqrt(3) c the root is 2 c, so the distance is c / D = scale whatever D is."""
    c = 0.01 * dims
    gap = torch.full((1, dims), 3**0.5 * c / dims**0.5, dtype=torch.float64)
    assert between(PseudoHuber(scale=0.01), gap, torch.zeros_like(gap)).item() == pytest.approx(0.01)


def test_pseudo_huber_is_quadratic_near_and_linear_far():
    distance, zero = PseudoHuber(scale=0.1), torch.zeros(1, 4, dtype=torch.float64)
    direction = torch.full((1, 4), 0.5, dtype=torch.float64)
    near, far = (
        (lambda s: between(distance, s * direction, zero).item()),
        (lambda s: between(distance, s * direction, zero).item()),
    )
    assert near(2e-3) / near(1e-3) == pytest.approx(4, rel=1e-3)
    assert far(2e5) / far(1e5) == pytest.approx(2, rel=1e-3)
    assert far(1e6) == pytest.approx(1e6 / 4, rel=1e-3)


def test_pseudo_huber_refuses_a_scale_of_zero():
    with pytest.raises(ValueError, match="scale > 0, got 0"):
        PseudoHuber(scale=0.0)


def swirl(x, t, label):
    return x.flip(-1) * t.reshape(-1, *[1] * (x.ndim - 1)) + label.reshape(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", DISTANCES)
@given(shape=SHAPES, seed=SEED)
def test_loss_is_permutation_equivariant(name, path, shape, seed):
    g = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn((2, *shape), generator=g, dtype=torch.float64)
    t = torch.rand(shape[0], generator=g, dtype=torch.float64)
    label = torch.randint(5, (shape[0],), generator=g)
    order = torch.randperm(shape[0], generator=g)
    loss = flow_matching_loss(swirl, PATHS[path], Pairs(x0, x1, label), t, DISTANCES[name]())
    moved = Pairs(x0[order], x1[order], label[order])
    again = flow_matching_loss(swirl, PATHS[path], moved, t[order], DISTANCES[name]())
    torch.testing.assert_close(loss[order], again)


def test_loss_vanishes_for_the_only_flow_that_explains_the_pairs():
    """x1 = 3 x0 + 1 along straight lines: x_t = (1 + 2t) x0 + t, so x0 = (x - t) / (1 + 2t), v = 2 x0 + 1."""
    x0 = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0, 1, 64, dtype=torch.float64)
    pairs = Pairs(x0, 3 * x0 + 1)

    def field(x, t, label):
        return 2 * (x - t[:, None]) / (1 + 2 * t[:, None]) + 1

    def wrong_end_of_time(x, t, label):
        return field(x, 1 - t, label)

    assert flow_matching_loss(field, LINEAR, pairs, t, Squared()).max() < 1e-28
    assert flow_matching_loss(wrong_end_of_time, LINEAR, pairs, t, Squared()).mean() > 0.1


@pytest.mark.parametrize("name", WEIGHTINGS)
@given(seed=SEED)
def test_weighting_multiplies_the_loss_of_each_time(name, seed):
    g = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn((2, 6, 3), generator=g, dtype=torch.float64)
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    pairs = Pairs(x0, x1, torch.zeros(6))
    plain, weighted = (
        flow_matching_loss(swirl, LINEAR, pairs, t, Squared(), weight)
        for weight in (torch.ones_like, WEIGHTINGS[name])
    )
    torch.testing.assert_close(weighted, WEIGHTINGS[name](t) * plain)
    assert (WEIGHTINGS[name](t) >= 0).all()
    assert torch.isfinite(weighted).all()


@pytest.mark.parametrize("path", PATHS)
def test_times_are_mapped_to_those_the_path_is_trained_at(path):
    """A field that knows the pair explains it exactly, at every time a sampler may draw, the ends included."""
    path = PATHS[path]
    x0, x1 = torch.randn((2, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = []

    def field(x, t, label):
        seen.append(t)
        return interpolate(path, x0, x1, t)[1]

    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert flow_matching_loss(field, path, Pairs(x0, x1), t, Squared()).max() == 0
    assert (seen[0][0].item(), seen[0][-1].item()) == pytest.approx(path.span)


def test_a_normalised_path_compares_velocities_at_unit_size():
    """On the VE path u_t = s' x_0: a field that knows nothing is wrong by |x_0|^2, at every noise level alike."""
    x0, x1 = torch.randn((2, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    loss = flow_matching_loss(lambda x, t, label: torch.zeros_like(x), VE(), Pairs(x0, x1), t, Squared())
    torch.testing.assert_close(loss, x0.square().mean(1))
