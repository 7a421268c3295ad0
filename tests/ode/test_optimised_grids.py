"""Grids optimised for a field and a solver: none is worse than the uniform one."""

import pytest
import torch

from fmcore.analytic import gaussian_flow
from fmcore.flow.times import uniform_grid
from fmcore.ode.sampling import optimised_grid
from fmcore.ode.solvers import SOLVERS, integrate
from solver_examples import EULER, MIXTURES, exact, f64, field_and_noise, gaussian, rms, standard_normal

pytestmark = pytest.mark.numerics


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request):
    """A field and some noise, in float64."""
    return field_and_noise(request.param)


SEARCHED = [name for name, solver in SOLVERS.items() if not solver.stochastic]


def end_error(field, x0, end, knots, solver):
    return rms(integrate(field, x0, torch.as_tensor(knots, dtype=torch.float64), solver) - end)


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_optimised_grid_is_a_grid_no_worse_than_the_uniform_one(mixture, steps, name):
    field, x0 = mixture
    grid = optimised_grid(field, x0, steps, SOLVERS[name])
    assert grid.dtype == torch.float64
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (0, 1)
    assert (grid.diff() > 0).all()
    end = exact(field, x0)
    uniform = end_error(field, x0, end, uniform_grid(steps), SOLVERS[name])
    assert end_error(field, x0, end, grid, SOLVERS[name]) <= uniform * (1 + 1e-6)


def test_an_optimised_grid_of_two_steps_is_the_best_there_is(mixture):
    field, x0 = mixture
    end = exact(field, x0)
    found = optimised_grid(field, x0, 2, EULER)
    errors = {t / 200: end_error(field, x0, end, [0.0, t / 200, 1.0], EULER) for t in range(1, 200)}
    assert end_error(field, x0, end, found, EULER) < min(errors.values()) * 1.001
    assert found[1] == pytest.approx(min(errors, key=errors.get), abs=0.01)


def test_no_small_move_of_a_knot_betters_an_optimised_grid(mixture):
    field, x0 = mixture
    end = exact(field, x0)
    knots = optimised_grid(field, x0, 5, EULER).tolist()
    best = end_error(field, x0, end, knots, EULER)
    for i in range(1, 5):
        for shift in (-0.01, 0.01):
            assert end_error(field, x0, end, [*knots[:i], knots[i] + shift, *knots[i + 1 :]], EULER) > best * 0.999


@pytest.mark.parametrize("steps", [2, 4, 8])
@pytest.mark.parametrize(("s0", "s1"), [(1.0, 0.05), (0.05, 1.0)], ids=["bends last", "bends first"])
def test_an_optimised_grid_helps_on_trajectories_it_has_not_seen(s0, s1, steps):
    field = gaussian(s0=s0, s1=s1)
    x0, others = (s0 * standard_normal(64, 1, purpose=purpose) for purpose in ("search", "held out"))
    grid = optimised_grid(field, x0, steps, EULER)
    end = gaussian_flow(f64(0), f64(s0), f64(1), f64(s1), others, torch.ones(64, dtype=torch.float64))
    ours, uniform = (rms(integrate(field, others, g, EULER) - end) for g in (grid, uniform_grid(steps)))
    assert ours < 0.75 * uniform


def test_an_optimised_grid_hands_on_labels_and_works_on_images():
    label = torch.tensor([0, 1, 2])

    def field(x, t, label):
        return label.reshape(-1, 1, 1, 1) * t.reshape(-1, 1, 1, 1) ** 4 + 0 * x

    grid = optimised_grid(field, torch.zeros(3, 1, 2, 2), 2, EULER, label=label)
    assert grid[1] > 0.6, "the velocity grows late"


def test_a_field_that_diverges_has_no_optimised_grid():
    with pytest.raises(FloatingPointError, match="the field diverged"):
        optimised_grid(lambda x, t, label: x / (1 - t[:, None]), torch.ones(2, 1), 4, EULER)


@pytest.mark.parametrize("steps", [0, -1])
def test_an_optimised_grid_of_no_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"at least 1 step, got {steps}"):
        optimised_grid(lambda x, t, label: x, torch.zeros(1, 1), steps, EULER)
