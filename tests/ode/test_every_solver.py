"""What all solvers share: grids they refuse, counts of evaluations, trajectories, labels, shapes."""

from itertools import pairwise

import pytest
import torch

from fmcore.flow.fields import Counted, Guidance, guided
from fmcore.flow.times import uniform_grid
from fmcore.ode.solvers import SOLVERS, cost, integrate, integrate_adaptive, solver, step, steps_for, trajectory
from solver_examples import MIXTURES, RK4, every, field_and_noise, rms, standard_normal, tableaux

pytestmark = pytest.mark.numerics


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request):
    """A field and some noise, in float64."""
    return field_and_noise(request.param)


@every
@pytest.mark.parametrize("knots", [[], [0.5], [0, 0], [0, 0.5, 0.5, 1], [0, 0.6, 0.5, 1], [1, 0.2, 0.3]])
def test_a_grid_that_is_not_monotone_is_refused(method, knots):
    with pytest.raises(ValueError, match="strictly monotone with at least 2 knots"):
        integrate(lambda x, t, label: x, torch.zeros(1, 1), torch.tensor(knots, dtype=torch.float64), method)


@every
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_evaluations_are_steps_times_stages_but_what_the_last_saves(method, steps):
    field = Counted(lambda x, t, label: x)
    integrate(field, torch.zeros(2, 1), uniform_grid(steps), method)
    assert field.nfe == cost(method, steps) == steps * method.stages - method.saved
    assert steps_for(method, field.nfe) == steps
    twice = Counted(lambda x, t, label: x)
    label = torch.zeros(2, dtype=torch.int64)
    integrate(guided(twice, Guidance(2.0), 1), torch.zeros(2, 1), uniform_grid(steps), method, label)
    assert twice.nfe == 2 * field.nfe
    assert steps_for(method, twice.nfe, passes=2) == steps


@every
@pytest.mark.parametrize("passes", [1, 2])
def test_evaluations_that_no_number_of_steps_costs_are_refused(method, passes):
    one, two, three = (passes * cost(method, steps) for steps in (1, 2, 3))
    guided_ = " under guidance" if passes > 1 else ""
    for nfe in {0, -one, *range(one + 1, two)}:
        said = rf"whose steps{guided_} cost {one}, {two}, {three}, \.\.\. evaluations cannot spend {nfe}"
        with pytest.raises(ValueError, match=said):
            steps_for(method, nfe, passes=passes)


def test_unknown_solver_is_answered_with_the_names():
    with pytest.raises(ValueError, match=r"'rk5'.*" + ".*".join(SOLVERS)):
        solver("rk5")
    assert all(solver(name) is method for name, method in SOLVERS.items())


@every
def test_trajectory_yields_every_knot(mixture, method):
    field, x0 = mixture
    grid = uniform_grid(5)
    points = list(trajectory(field, x0, grid, method))
    assert len(points) == 6
    assert torch.equal(points[0], x0)
    assert torch.equal(points[-1], integrate(field, x0, grid, method))
    assert all(point.shape == x0.shape and point.dtype == x0.dtype for point in points)


@tableaux
def test_trajectory_is_one_step_after_another(mixture, method):
    field, x0 = mixture
    grid = uniform_grid(5)
    for (t, s), (x, y) in zip(pairwise(grid.tolist()), pairwise(trajectory(field, x0, grid, method)), strict=True):
        assert torch.equal(step(field, x, t, s, method), y)


@every
def test_labels_reach_the_field_and_no_graph_is_kept(method):
    label = torch.tensor([0, 1, 2])
    speed = torch.nn.Parameter(torch.tensor([1.0]))

    def end(label):
        return integrate(
            lambda x, t, label: speed * label[:, None].float(), torch.zeros(3, 1), uniform_grid(2), method, label
        )

    assert (end(label) - end(0 * label)).flatten().tolist() == pytest.approx(
        (end(0 * label + 1) - end(0 * label)).flatten() * label
    )
    assert not end(label).requires_grad
    if not method.stochastic:
        assert end(label).flatten().tolist() == pytest.approx([0, 1, 2])


@every
def test_inputs_are_left_as_they_were(mixture, method):
    field, x0 = mixture
    before = x0.clone()
    integrate(field, x0, uniform_grid(2), method)
    assert torch.equal(x0, before)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_keep_shape_and_dtype(method, dtype):
    x0 = standard_normal(2, 3, 4, 4).to(dtype)
    end = integrate(lambda x, t, label: -x * t.reshape(-1, 1, 1, 1), x0, uniform_grid(3), method)
    assert end.shape == x0.shape
    assert end.dtype == dtype


@pytest.mark.parametrize(("t", "s"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
def test_adaptive_keeps_its_tolerance(mixture, t, s):
    field, x = mixture
    grid = torch.linspace(t, s, 257, dtype=torch.float64)
    fine = integrate(field, x, grid, RK4)
    tight = integrate_adaptive(field, x, t, s, rtol=1e-9, atol=1e-9)
    loose = integrate_adaptive(field, x, t, s, rtol=1e-3, atol=1e-3)
    assert rms(tight - fine) < 1e-8
    assert rms(tight - fine) < rms(loose - fine) < 0.05


def test_adaptive_hands_on_labels_and_refuses_an_empty_interval():
    def field(x, t, label):
        return label[:, None].to(x.dtype).expand_as(x)

    end = integrate_adaptive(field, torch.zeros(2, 1), rtol=1e-4, atol=1e-4, label=torch.tensor([3, 5]))
    assert end.flatten().tolist() == pytest.approx([3, 5])
    with pytest.raises(ValueError, match="nothing to integrate"):
        integrate_adaptive(field, torch.zeros(2, 1), 0.5, 0.5, rtol=1e-4, atol=1e-4)
