"""Solvers against scipy, torchdiffeq and the algebra of Runge-Kutta methods."""

from itertools import pairwise
from math import expm1, factorial, log2, prod

import numpy as np
import pytest
import torch
import torchdiffeq
from numpy.polynomial import Polynomial

from fmcore.analytic import gaussian_rectified_field
from fmcore.flow.times import GRIDS, uniform_grid
from fmcore.ode.solvers import SOLVERS, AdamsBashforth, integrate, trajectory
from solver_examples import (
    EULER,
    MIXTURES,
    RK4,
    convergent,
    deterministic,
    exact,
    f64,
    field_and_noise,
    forward_only,
    gaussian,
    reversible,
    rms,
    slope,
    standard_normal,
    tableaux,
    unconvergent,
    where,
)

pytestmark = pytest.mark.numerics

TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}
GRADED = {
    "squared": lambda u: u**2,
    "towards the end": lambda u: 1 - (1 - u) ** 2,
    "exponential": lambda u: torch.expm1(2 * u) / expm1(2),
    "both ends": lambda u: u - torch.sin(2 * torch.pi * u) / 8,
}


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request):
    """A field and some noise, in float64."""
    return field_and_noise(request.param)


@pytest.fixture(scope="module")
def end(mixture):
    """Where the noise goes."""
    return exact(*mixture)


@convergent
def test_order_is_what_the_solver_says(mixture, end, method):
    field, x0 = mixture
    found = slope(lambda steps: rms(integrate(field, x0, uniform_grid(steps), method) - end))
    assert found == pytest.approx(method.order, abs=0.15)


@convergent
@pytest.mark.parametrize("grading", GRADED)
def test_graded_grids_keep_the_order(mixture, end, method, grading):
    """A method with memory that took its steps for equal would fall to first order here."""
    field, x0 = mixture

    def error(steps):
        return rms(integrate(field, x0, GRADED[grading](uniform_grid(steps)), method) - end)

    assert slope(error) == pytest.approx(method.order, abs=0.25)


@convergent
@pytest.mark.parametrize("grid", GRIDS)
def test_more_steps_on_any_of_our_grids_are_better(mixture, end, method, grid):
    field, x0 = mixture
    few, many = (rms(integrate(field, x0, GRIDS[grid]()(steps), method) - end) for steps in (12, 48))
    assert many < few / 2.5**method.order


def test_a_fine_rk4_agrees_with_scipy(mixture, end):
    field, x0 = mixture
    torch.testing.assert_close(integrate(field, x0, uniform_grid(512), RK4), end, rtol=0, atol=1e-9)


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


@tableaux
def test_tableau_satisfies_the_order_conditions_and_no_more(method):
    assert len(method.a) == len(method.b) == len(method.c) == method.stages
    assert [len(row) for row in method.a] == list(range(method.stages))
    assert [sum(row) for row in method.a] == pytest.approx(method.c)
    for order in range(1, method.order + 1):
        for found, wanted in order_conditions(method, order):
            assert found == pytest.approx(wanted, abs=1e-14)
    following = order_conditions(method, method.order + 1)
    assert any(abs(found - wanted) > 1e-3 for found, wanted in following)


@reversible
def test_forward_then_backward_returns_at_the_order(mixture, method):
    field, x0 = mixture

    def error(steps):
        grid = uniform_grid(steps)
        x1 = integrate(field, x0, grid, method)
        return rms(integrate(field, x1, grid.flip(0), method) - x0)

    assert slope(error) > method.order - 0.15
    assert error(64) < 0.1


@reversible
def test_backward_is_the_exact_flow_backward(mixture, method):
    field, x1 = mixture
    start = exact(field, x1, 1.0, 0.0)
    found = [rms(integrate(field, x1, uniform_grid(n).flip(0), method) - start) for n in (32, 64)]
    assert log2(found[0] / found[1]) == pytest.approx(method.order, abs=0.15)
    assert found[0] < 0.1


@reversible
def test_a_reversible_solver_may_start_anywhere(mixture, method):
    field, x = mixture
    for t, s in ((0.3, 0.8), (0.8, 0.3)):
        end = integrate(field, x, torch.linspace(t, s, 33, dtype=torch.float64), method)
        assert rms(end - exact(field, x, t, s)) < 0.04


@forward_only
@pytest.mark.parametrize("knots", [[1.0, 0.5, 0.0], [0.25, 0.5, 1.0], [0.0, -1.0], [1e-9, 1.0]])
def test_a_solver_that_starts_from_noise_refuses_other_grids(method, knots):
    with pytest.raises(ValueError, match=f"{type(method).__name__} runs from noise at 0 to data at 1 only"):
        next(trajectory(lambda x, t, label: x, torch.zeros(1, 1), f64(*knots), method))


@tableaux
def test_step_sizes_are_the_differences_of_the_grid(method):
    """On dx/dt = -2 x a step of an s-stage method of order s multiplies by the Taylor polynomial of exp."""
    assert method.stages == method.order, "this test knows no stability polynomial for other methods"
    knots = [0.0, 0.1, 0.15, 0.6, 1.0]
    x0 = f64(1.0, -3.0)[:, None]
    found = integrate(lambda x, t, label: -2 * x, x0, f64(*knots), method)
    factor = prod(
        sum((-2 * (s - t)) ** k / factorial(k) for k in range(method.order + 1)) for t, s in pairwise(knots)
    )
    torch.testing.assert_close(found, factor * x0)


@tableaux
def test_time_reaches_the_field(method):
    """A method of order p integrates t^(p-1) exactly, on any grid."""

    def field(x, t, label):
        return (t[:, None] ** (method.order - 1)).expand_as(x)

    end = integrate(field, torch.zeros(3, 2, dtype=torch.float64), f64(1.0, 0.7, 0.2, 0.0), method)
    torch.testing.assert_close(end, torch.full_like(end, -1 / method.order))


TWO_STEP = where(lambda method: isinstance(method, AdamsBashforth))


@TWO_STEP
@pytest.mark.parametrize("knots", [[0.0, 0.3, 0.8], [1.0, 0.9, 0.2], [0.0, 0.5, 1.0]])
def test_two_steps_by_hand(mixture, method, knots):
    field, x0 = mixture
    t0, t1, t2 = knots

    def v(x, t):
        return field(x, x.new_full((len(x),), t), None)

    x1 = x0 + (t1 - t0) * v(x0, t0)
    w = (t2 - t1) / (t1 - t0)
    x2 = x1 + (t2 - t1) * ((1 + w / 2) * v(x1, t1) - w / 2 * v(x0, t0))
    torch.testing.assert_close(
        torch.stack(list(trajectory(field, x0, f64(*knots), method))[1:]), torch.stack([x1, x2])
    )


@TWO_STEP
def test_each_step_integrates_the_line_through_two_velocities(method):
    """Against numpy's polynomials, on a grid without a pattern, with steps that grow and shrink."""
    knots = [0.0, 0.02, 0.3, 0.35, 0.5, 0.96, 1.0]

    def velocity(x, t):
        return np.cos(3 * x) - 2 * t

    x, seen = 0.4, []
    for t, s in pairwise(knots):
        seen = [*seen[-1:], (t, velocity(x, t))]
        times, values = zip(*seen, strict=True)
        line = Polynomial.fit(times, values, len(seen) - 1).integ()
        x += line(s) - line(t)
    end = integrate(lambda y, t, label: torch.cos(3 * y) - 2 * t[:, None], f64(0.4)[:, None], f64(*knots), method)
    assert end.item() == pytest.approx(x, rel=1e-12)


@TWO_STEP
def test_the_two_step_method_starts_as_euler_and_keeps_no_memory_between_walks(mixture, method):
    field, x0 = mixture
    first = integrate(field, x0, uniform_grid(1), method)
    assert torch.equal(first, integrate(field, x0, uniform_grid(1), EULER))
    integrate(field, x0 + 1, uniform_grid(3), method)
    assert torch.equal(first, integrate(field, x0, uniform_grid(1), method))


@deterministic
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_straight_flows_are_exact_at_every_step_count(method, steps):
    field = gaussian(of=gaussian_rectified_field)
    x0 = standard_normal(50, 3)
    for grid in (make()(steps) for make in GRIDS.values()):
        torch.testing.assert_close(integrate(field, x0, grid, method), 1 + 0.4 * x0)


@unconvergent
def test_a_solver_of_order_0_is_euler_in_one_step(mixture, method):
    field, x0 = mixture
    assert torch.equal(integrate(field, x0, uniform_grid(1), method), integrate(field, x0, uniform_grid(1), EULER))


@unconvergent
def test_a_solver_of_order_0_does_not_converge_where_paths_bend(mixture, end, method):
    field, x0 = mixture
    few, many, euler = (
        rms(integrate(field, x0, uniform_grid(steps), by) - end)
        for steps, by in ((16, method), (256, method), (256, EULER))
    )
    assert many > 0.9 * few
    assert many > 10 * euler


@pytest.mark.parametrize("knots", [[0.0, 0.5, 1.0], [0.0, 0.1, 0.4, 1.0]])
def test_noise_anchored_joins_predicted_data_to_the_first_noise(mixture, knots):
    field, x0 = mixture
    x = x0
    for t, s in pairwise(knots):
        x1 = x + (1 - t) * field(x, x.new_full((len(x),), t), None)
        x = torch.lerp(x0, x1, s)
    torch.testing.assert_close(integrate(field, x0, f64(*knots), SOLVERS["noise_anchored"]), x)


@pytest.mark.parametrize("name", TORCHDIFFEQ)
def test_torchdiffeq_agrees(mixture, name):
    field, x0 = mixture
    grid = f64(0.0, 0.3, 0.4, 0.85, 0.95 if name == "heun" else 1.0)  # whose step to the data is Euler's
    theirs = torchdiffeq.odeint(lambda t, x: field(x, t.expand(len(x)), None), x0, grid, method=TORCHDIFFEQ[name])
    ours = torch.stack(list(trajectory(field, x0, grid, SOLVERS[name])))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("knots", [[0.0, 0.3, 1.0], [1.0, 0.3, 0.0]], ids=["to the data", "to the noise"])
def test_heun_takes_an_euler_step_next_to_the_data(mixture, end, knots):
    field, x0 = mixture
    x, asked = x0 if knots[0] == 0 else end, []

    def watched(x_t, t, label):
        asked.append(t[0].item())
        return field(x_t, t, label)

    def heun(x_t, t, s):
        v = field(x_t, x_t.new_full((len(x_t),), t), None)
        there = field(x_t + (s - t) * v, x_t.new_full((len(x_t),), s), None)
        return x_t + (s - t) * (v + there) / 2

    def euler(x_t, t, s):
        return x_t + (s - t) * field(x_t, x_t.new_full((len(x_t),), t), None)

    first, second = (heun, euler) if knots[0] == 0 else (euler, heun)
    there = second(first(x, knots[0], knots[1]), knots[1], knots[2])
    torch.testing.assert_close(integrate(watched, x, f64(*knots), SOLVERS["heun"]), there)
    assert asked == ([0.0, 0.3, 0.3] if knots[0] == 0 else [1.0, 0.3, 0.0])


def test_torchdiffeq_rk4_agrees_at_the_order(mixture):
    """Theirs is Kutta's 3/8 rule, so the two differ by O(h^4) only."""
    field, x0 = mixture

    def gap(steps):
        grid = uniform_grid(steps)
        theirs = torchdiffeq.odeint(lambda t, x: field(x, t.expand(len(x)), None), x0, grid, method="rk4")
        return rms(integrate(field, x0, grid, RK4) - theirs[-1])

    assert gap(32) < 1e-4
    assert slope(gap) > 3.7
