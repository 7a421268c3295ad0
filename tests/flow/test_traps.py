"""What once trained, scored or converted silently wrong."""

import pytest
import torch

from fmcore.endings.spaces import energy, scale_of
from fmcore.flow.couplings import Independent, MinibatchOT
from fmcore.flow.paths import CONTINUOUS_PATHS, PREDICTIONS, convert
from fmcore.flow.training import Objective, TrainConfig, new_state, train
from fmcore.models.networks import MLP
from fmcore.ode.solvers import integrate
from fmcore.score.points import energy_distance, mmd

g = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("path", CONTINUOUS_PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_a_prediction_that_is_not_converted_is_kept(path, kind, t):
    value = torch.randn(4, 2, generator=g)
    found = convert(CONTINUOUS_PATHS[path](), value, torch.full((4,), t), value, source=kind, target=kind)
    assert torch.equal(found, value)


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_distances_between_points_do_not_depend_on_where_the_origin_is(distance):
    x = torch.randn(1000, 2, generator=g)
    y = torch.randn(1000, 2, generator=g) + 0.3
    near, far = distance(x, y).value, distance(x + 1e4, y + 1e4).value
    assert far == pytest.approx(near, rel=0.02)


def test_an_energy_distance_of_one_sample_is_refused():
    y = torch.randn(50, 3, generator=g)
    with pytest.raises(ValueError, match="an energy distance needs at least 2 samples, got 1: raise batch_size"):
        energy(y[:1], y, scale_of(y, None))


def test_parts_too_small_for_accumulation_are_said():
    # As a group of a matched batch may be: of fewer samples than there are parts.
    objective = Objective(lambda g, progress: torch.zeros(2, 2), lambda network, batch: batch.sum(1))
    config = TrainConfig(images=8, batch_size=4, lr=1e-3, accumulate=4)
    state = new_state(MLP(8, 1).build((2,), None), config)
    with pytest.raises(ValueError, match="accumulate: a part of the batch has 2 samples, too few for 4 parts"):
        next(train(state, objective, config, seed=0))


@pytest.mark.parametrize("solver", ["euler", "ab2", "heun", "rk4", "noise_anchored"])
def test_gradients_pass_through_a_solver_if_they_are_asked_for(solver):
    x0 = torch.randn(5, 2, generator=g, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert not integrate(lambda x, t: rate * x, x0, 4, solver).requires_grad
    assert torch.autograd.gradcheck(
        lambda x0, rate: integrate(lambda x, t: rate * x, x0, 4, solver, gradients=True), (x0, rate)
    )
    assert torch.is_grad_enabled()
    if solver == "euler":
        (by_rate,) = torch.autograd.grad(
            integrate(lambda x, t: rate * x, x0, 4, solver, gradients=True).sum(), rate
        )
        torch.testing.assert_close(by_rate, (x0 * (1 + rate / 4) ** 3).sum().detach())


@pytest.mark.parametrize("dims", [2, 15, 16])
def test_points_that_come_twice_still_use_each_noise_once(dims):
    """Ties: an optimal plan may then lie between permutations."""
    x1 = torch.randn(8, dims, generator=g).repeat(40, 1)
    coupling = MinibatchOT(Independent(x1))
    for step in range(5):
        free, paired = (c(200, torch.Generator().manual_seed(step)) for c in (coupling.fresh, coupling))
        assert torch.equal(paired.x0.sort(0).values, free.x0.sort(0).values)


def test_pixels_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"x1: expected floats, or 8-bit pixels as torch\.uint8, got torch\.int64"):
        Independent.__post_init__(type("Made", (), {"x1": torch.zeros(3, 2, dtype=torch.int64), "source": None}))
