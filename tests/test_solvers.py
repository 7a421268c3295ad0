"""Solvers against scipy, torchdiffeq and the algebra of Runge-Kutta methods."""

from itertools import pairwise
from math import factorial, log2, prod

import pytest
import torch
import torchdiffeq
from scipy.integrate import solve_ivp

from fmcore.analytic import mixture_field
from fmcore.fields import Counted
from fmcore.solvers import SOLVERS, integrate, integrate_adaptive, solver, step, steps_for, trajectory
from fmcore.times import uniform_grid

# Gaussian to Gaussian would not do: its symmetry makes midpoint third order.
MIXTURES = {
    "1-D": (torch.tensor([0.4, 0.6]), torch.tensor([[-1.5], [1.0]]), torch.tensor([0.5, 0.4])),
    "2-D": (torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 1.0]]), torch.tensor([0.6, 0.4])),
}
TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}


@pytest.fixture(params=MIXTURES)
def mixture(request):
    """A field and some noise, in float64."""
    weights, means, stds = (value.double() for value in MIXTURES[request.param])
    x0 = torch.randn((32, means.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mixture_field(weights, means, stds), x0


@pytest.fixture(params=SOLVERS)
def tableau(request):
    return SOLVERS[request.param]


def exact(field, x, t=0.0, s=1.0):
    """Where scipy's eighth-order method carries x."""

    def flat(at, y):
        y = torch.from_numpy(y).reshape(x.shape)
        return field(y, y.new_full((len(y),), at), None).flatten().numpy()

    found = solve_ivp(flat, (t, s), x.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    return torch.from_numpy(found.y[:, -1].copy()).reshape(x.shape)


def slope(error):
    """The order that the errors of 32 and 64 steps show."""
    return log2(error(32) / error(64))


def rms(x):
    return float(x.square().mean().sqrt())


def test_order_is_what_the_tableau_says(mixture, tableau):
    field, x0 = mixture
    end = exact(field, x0)
    found = slope(lambda steps: rms(integrate(field, x0, uniform_grid(steps), tableau) - end))
    assert found == pytest.approx(tableau.order, abs=0.15)


def test_a_fine_rk4_agrees_with_scipy(mixture):
    field, x0 = mixture
    torch.testing.assert_close(
        integrate(field, x0, uniform_grid(1024), SOLVERS["rk4"]), exact(field, x0), rtol=0, atol=1e-9
    )


def order_conditions(tableau, order):
    """What Hairer, Norsett and Wanner (II.2) ask of a method of that order: pairs that must be equal."""
    b, c = tableau.b, tableau.c
    ac = [sum(a * c[j] for j, a in enumerate(row)) for row in tableau.a]
    ac2 = [sum(a * c[j] ** 2 for j, a in enumerate(row)) for row in tableau.a]
    aac = [sum(a * ac[j] for j, a in enumerate(row)) for row in tableau.a]

    def weighed(values):
        return sum(w * v for w, v in zip(b, values, strict=True))

    return {
        1: [(sum(b), 1)],
        2: [(weighed(c), 1 / 2)],
        3: [(weighed([x**2 for x in c]), 1 / 3), (weighed(ac), 1 / 6)],
        4: [
            (weighed([x**3 for x in c]), 1 / 4),
            (weighed([x * y for x, y in zip(c, ac, strict=True)]), 1 / 8),
            (weighed(ac2), 1 / 12),
            (weighed(aac), 1 / 24),
        ],
        5: [(weighed([x**4 for x in c]), 1 / 5)],
    }[order]


def test_tableau_satisfies_the_order_conditions_and_no_more(tableau):
    assert len(tableau.a) == len(tableau.b) == len(tableau.c) == tableau.stages
    assert [len(row) for row in tableau.a] == list(range(tableau.stages))
    assert [sum(row) for row in tableau.a] == pytest.approx(tableau.c)
    for order in range(1, tableau.order + 1):
        for found, wanted in order_conditions(tableau, order):
            assert found == pytest.approx(wanted, abs=1e-14)
    following = order_conditions(tableau, tableau.order + 1)
    assert any(abs(found - wanted) > 1e-3 for found, wanted in following)


def test_forward_then_backward_returns_at_the_order(mixture, tableau):
    field, x0 = mixture

    def error(steps):
        grid = uniform_grid(steps)
        x1 = integrate(field, x0, grid, tableau)
        return rms(integrate(field, x1, grid.flip(0), tableau) - x0)

    assert slope(error) > tableau.order - 0.15
    assert error(64) < 0.1


def test_backward_is_the_exact_flow_backward(mixture, tableau):
    field, x1 = mixture
    start = exact(field, x1, 1.0, 0.0)
    found = slope(lambda steps: rms(integrate(field, x1, uniform_grid(steps).flip(0), tableau) - start))
    assert found == pytest.approx(tableau.order, abs=0.15)


def test_step_sizes_are_the_differences_of_the_grid(tableau):
    """On dx/dt = -2 x a step of an s-stage method of order s multiplies by the Taylor polynomial of exp."""
    assert tableau.stages == tableau.order, "this test knows no stability polynomial for other methods"
    knots = [0.0, 0.1, 0.15, 0.6, 1.0]
    x0 = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    found = integrate(lambda x, t, label: -2 * x, x0, torch.tensor(knots, dtype=torch.float64), tableau)
    factor = prod(
        sum((-2 * (s - t)) ** k / factorial(k) for k in range(tableau.order + 1)) for t, s in pairwise(knots)
    )
    torch.testing.assert_close(found, factor * x0)


def test_time_reaches_the_field(tableau):
    """A method of order p integrates t^(p-1) exactly, on any grid."""
    grid = torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=torch.float64)

    def field(x, t, label):
        return (t[:, None] ** (tableau.order - 1)).expand_as(x)

    end = integrate(field, torch.zeros(3, 2, dtype=torch.float64), grid, tableau)
    torch.testing.assert_close(end, torch.full_like(end, -1 / tableau.order))


@pytest.mark.parametrize("name", TORCHDIFFEQ)
def test_torchdiffeq_agrees(mixture, name):
    field, x0 = mixture
    grid = torch.tensor([0.0, 0.3, 0.4, 0.85, 1.0], dtype=torch.float64)
    theirs = torchdiffeq.odeint(lambda t, x: field(x, t.expand(len(x)), None), x0, grid, method=TORCHDIFFEQ[name])
    ours = torch.stack(list(trajectory(field, x0, grid, SOLVERS[name])))
    torch.testing.assert_close(ours, theirs)


def test_torchdiffeq_rk4_agrees_at_the_order(mixture):
    """Theirs is Kutta's 3/8 rule, so the two differ by O(h^4) only."""
    field, x0 = mixture

    def gap(steps):
        grid = uniform_grid(steps)
        theirs = torchdiffeq.odeint(lambda t, x: field(x, t.expand(len(x)), None), x0, grid, method="rk4")
        return rms(integrate(field, x0, grid, SOLVERS["rk4"]) - theirs[-1])

    assert gap(32) < 1e-4
    assert slope(gap) > 3.7


@pytest.mark.parametrize("knots", [[], [0.5], [0, 0], [0, 0.5, 0.5, 1], [0, 0.6, 0.5, 1], [1, 0.2, 0.3]])
def test_a_grid_that_is_not_monotone_is_refused(tableau, knots):
    with pytest.raises(ValueError, match="strictly monotone with at least 2 knots"):
        integrate(lambda x, t, label: x, torch.zeros(1, 1), torch.tensor(knots, dtype=torch.float64), tableau)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_evaluations_are_steps_times_stages(tableau, steps):
    field = Counted(lambda x, t, label: x)
    integrate(field, torch.zeros(2, 1), uniform_grid(steps), tableau)
    assert field.nfe == steps * tableau.stages
    assert steps_for(tableau, field.nfe) == steps


def test_evaluations_that_no_number_of_steps_costs_are_refused(tableau):
    for nfe in {0, -tableau.stages, tableau.stages + 1 if tableau.stages > 1 else 0}:
        with pytest.raises(ValueError, match=f"cannot spend {nfe}"):
            steps_for(tableau, nfe)


def test_unknown_solver_is_answered_with_the_names():
    with pytest.raises(ValueError, match=r"'rk5'.*" + ".*".join(SOLVERS)):
        solver("rk5")
    assert all(solver(name) is tableau for name, tableau in SOLVERS.items())


def test_trajectory_yields_every_knot(mixture, tableau):
    field, x0 = mixture
    grid = uniform_grid(5)
    points = list(trajectory(field, x0, grid, tableau))
    assert len(points) == 6
    assert torch.equal(points[0], x0)
    assert torch.equal(points[-1], integrate(field, x0, grid, tableau))
    for (t, s), (x, y) in zip(pairwise(grid.tolist()), pairwise(points), strict=True):
        assert torch.equal(step(field, x, t, s, tableau), y)


def test_labels_reach_the_field_and_no_graph_is_kept(tableau):
    label = torch.tensor([0, 1, 2])
    speed = torch.nn.Parameter(torch.tensor([1.0]))
    end = integrate(
        lambda x, t, label: speed * label[:, None].float(), torch.zeros(3, 1), uniform_grid(2), tableau, label
    )
    assert end.flatten().tolist() == pytest.approx([0, 1, 2])
    assert not end.requires_grad


def test_inputs_are_left_as_they_were(mixture, tableau):
    field, x0 = mixture
    before = x0.clone()
    integrate(field, x0, uniform_grid(2), tableau)
    assert torch.equal(x0, before)


@pytest.mark.parametrize(("t", "s"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
def test_adaptive_keeps_its_tolerance(mixture, t, s):
    field, x = mixture
    grid = torch.linspace(t, s, 1025, dtype=torch.float64)
    fine = integrate(field, x, grid, SOLVERS["rk4"])
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
