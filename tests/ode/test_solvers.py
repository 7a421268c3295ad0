"""Solvers against scipy, torchdiffeq, the algebra of Runge-Kutta methods, and exact laws."""

from dataclasses import replace
from itertools import combinations, pairwise
from math import expm1, factorial, log2, prod

import numpy as np
import pytest
import torch
import torchdiffeq
from numpy.polynomial import Polynomial
from scipy import stats
from scipy.integrate import solve_ivp

from fmcore.analytic import gaussian_field, gaussian_flow, gaussian_rectified_field, mixture_field
from fmcore.flow import rng
from fmcore.flow.fields import Counted, Guidance, guided
from fmcore.flow.times import GRIDS, uniform_grid
from fmcore.ode.sampling import optimised_grid
from fmcore.ode.solvers import (
    SOLVERS,
    AdamsBashforth,
    EulerMaruyama,
    Tableau,
    integrate,
    integrate_adaptive,
    seeded,
    solver,
    step,
    steps_for,
    trajectory,
)

pytestmark = pytest.mark.numerics

# Gaussian to Gaussian would not do: its symmetry makes midpoint third order.
MIXTURES = {
    "1-D": (torch.tensor([0.4, 0.6]), torch.tensor([[-1.5], [1.0]]), torch.tensor([0.5, 0.4])),
    "2-D": (torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 1.0]]), torch.tensor([0.6, 0.4])),
}
TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2"}
GRADED = {
    "squared": lambda u: u**2,
    "towards the end": lambda u: 1 - (1 - u) ** 2,
    "exponential": lambda u: torch.expm1(2 * u) / expm1(2),
    "both ends": lambda u: u - torch.sin(2 * torch.pi * u) / 8,
}
EULER, RK4 = SOLVERS["euler"], SOLVERS["rk4"]


def where(wanted):
    """Every solver of which that is so, today's and tomorrow's."""
    chosen = [pytest.param(method, id=name) for name, method in SOLVERS.items() if wanted(method)]
    return pytest.mark.parametrize("method", chosen)


every = where(lambda method: True)
tableaux = where(lambda method: isinstance(method, Tableau))
deterministic = where(lambda method: not method.stochastic)
stochastic = where(lambda method: method.stochastic)
convergent = where(lambda method: method.order >= 1 and not method.stochastic)
unconvergent = where(lambda method: method.order == 0)
reversible = where(lambda method: method.reversible)
forward_only = where(lambda method: not method.reversible)


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request):
    """A field and some noise, in float64."""
    weights, means, stds = (value.double() for value in MIXTURES[request.param])
    x0 = torch.randn((32, means.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mixture_field(weights, means, stds), x0


@pytest.fixture(scope="module")
def end(mixture):
    """Where the noise goes."""
    return exact(*mixture)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def standard_normal(*shape, purpose="start"):
    return torch.randn(shape, generator=rng.generator(0, purpose), dtype=torch.float64)


def gaussian(m0=0.0, s0=1.0, m1=1.0, s1=0.4, of=gaussian_field):
    return of(f64(m0), f64(s0), f64(m1), f64(s1))


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
    with pytest.raises(ValueError, match=f"{type(method).__name__} runs from noise at 0 to data only"):
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
    grid = f64(0.0, 0.3, 0.4, 0.85, 1.0)
    theirs = torchdiffeq.odeint(lambda t, x: field(x, t.expand(len(x)), None), x0, grid, method=TORCHDIFFEQ[name])
    ours = torch.stack(list(trajectory(field, x0, grid, SOLVERS[name])))
    torch.testing.assert_close(ours, theirs)


def test_torchdiffeq_rk4_agrees_at_the_order(mixture):
    """Theirs is Kutta's 3/8 rule, so the two differ by O(h^4) only."""
    field, x0 = mixture

    def gap(steps):
        grid = uniform_grid(steps)
        theirs = torchdiffeq.odeint(lambda t, x: field(x, t.expand(len(x)), None), x0, grid, method="rk4")
        return rms(integrate(field, x0, grid, RK4) - theirs[-1])

    assert gap(32) < 1e-4
    assert slope(gap) > 3.7


# Stochastic solvers. Rows of many independent 1-D samples: noise is drawn row by row, so this is fast.
LAW = (f64(0.4, 0.6), f64(-1.5, 1.0)[:, None], f64(0.5, 0.4))


def rows_of_points(field):
    return lambda x, t, label: field(x.reshape(-1, 1), t.repeat_interleave(x.shape[1]), label).reshape(x.shape)


def law_at(t):
    weights, means, stds = (value.flatten().numpy() for value in LAW)
    spread = np.hypot(1 - t, t * stds)
    return lambda x: (weights * stats.norm.cdf((x[:, None] - t * means) / spread)).sum(1)


def churned(method, churn):
    return replace(method, churn=churn) if isinstance(method, EulerMaruyama) else method


@stochastic
@pytest.mark.parametrize("churn", [0.5, 2.0])
def test_a_stochastic_solver_has_the_marginals_of_the_flow(method, churn):
    x0, steps = standard_normal(50, 100), 200
    points = list(trajectory(rows_of_points(mixture_field(*LAW)), x0, uniform_grid(steps), churned(method, churn)))
    for t in (0.3, 0.5, 0.8, 1.0):
        x = points[round(t * steps)].flatten().numpy()
        assert stats.kstest(x, law_at(t)).pvalue > 1e-3, t


@stochastic
def test_a_stochastic_solver_ends_elsewhere_from_the_same_start(method):
    """At a high churn the end forgets the start, and where the ODE would have gone."""
    field, x0 = gaussian(s1=1.0), standard_normal(50, 100)
    ends = [integrate(field, x0, uniform_grid(200), seeded(churned(method, 3.0), seed, 0)) for seed in (0, 1)]
    a, b = (stats.pearsonr(x.flatten(), y.flatten()).statistic for x, y in (ends, (ends[0], x0)))
    assert 0 <= a < 0.5
    assert 0 <= b < 0.5


def test_the_velocity_of_a_rectified_flow_is_no_score():
    """After reflow noise and data are no longer independent: the ODE has the marginals, the SDE does not."""
    field = gaussian_rectified_field(f64(0), f64(1), f64(0), f64(0.2))
    x0 = standard_normal(200, 100)
    ends = {name: integrate(field, x0, uniform_grid(100), SOLVERS[name]).std().item() for name in ("euler", "sde")}
    assert ends["euler"] == pytest.approx(0.2, rel=0.03)
    assert abs(ends["sde"] - 0.2) > 0.05


def euler_maruyama_moments(m1, s1, steps, churn):
    """Mean and variance of the scheme on N(0, 1) -> N(m1, s1^2), whose marginals are N(t m1, V).

    The drift is the ODE's velocity plus g^2 / 2 times the score -(x - t m1) / V, with g^2 = 2 churn (1 - t).
    """
    mean, variance = 0.0, 1.0
    for t, s in pairwise(i / steps for i in range(steps + 1)):
        h, v = s - t, (1 - t) ** 2 + (t * s1) ** 2
        rate = (t * s1**2 - (1 - t)) / v - churn * (1 - t) / v
        mean += h * (m1 + rate * (mean - t * m1))
        variance = (1 + h * rate) ** 2 * variance + (2 * churn * (1 - t) * h if t + h < 1 else 0)
    return mean, variance


@pytest.mark.parametrize("churn", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("s1", [0.5, 2.0])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_euler_maruyama_has_the_moments_of_its_recursion(steps, s1, churn):
    x0 = standard_normal(200, 1000)
    x = integrate(gaussian(m1=1.5, s1=s1), x0, uniform_grid(steps), EulerMaruyama(churn=churn))
    mean, variance = euler_maruyama_moments(1.5, s1, steps, churn)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * (variance / x.numel()) ** 0.5)
    assert float(x.var()) == pytest.approx(variance, rel=4 * (2 / x.numel()) ** 0.5)


@stochastic
def test_a_stochastic_solver_s_weak_order_is_what_it_says(method):
    """The error of the variance, far above its Monte-Carlo error."""
    x0 = standard_normal(500, 1000)

    def bias(steps):
        return 1 - float(integrate(gaussian(s1=1.0), x0, uniform_grid(steps), method).var())

    assert bias(16) > 20 * (2 / x0.numel()) ** 0.5
    assert log2(bias(8) / bias(16)) == pytest.approx(method.order, abs=0.25)


@pytest.mark.parametrize("grid", GRIDS)
def test_without_churn_the_sde_is_euler_to_the_bit(mixture, grid):
    field, x0 = mixture
    knots = GRIDS[grid]()(9)
    ours = integrate(field, x0, knots, EulerMaruyama(churn=0.0, seed=4))
    assert torch.equal(ours, integrate(field, x0, knots, EULER))


def test_euler_maruyama_s_noise_is_normal_of_variance_2_churn_1_minus_t_h():
    """On the field whose drift is nothing the steps are the noise alone."""
    churn, grid = 0.7, f64(0.0, 0.1, 0.5, 0.9)  # the step to 1 has none
    points = list(
        trajectory(
            lambda x, t, label: churn * x / (1 + churn * t[:, None]),
            standard_normal(100, 100),
            grid,
            EulerMaruyama(churn=churn, seed=1),
        )
    )
    steps = [
        ((y - x) / (2 * churn * (1 - t) * (s - t)) ** 0.5).flatten().numpy()
        for (x, y), (t, s) in zip(pairwise(points), pairwise(grid.tolist()), strict=True)
    ]
    for drawn in steps:
        assert stats.kstest(drawn, "norm").pvalue > 1e-3
    for a, b in combinations([*steps, points[0].flatten().numpy()], 2):
        assert abs(stats.pearsonr(a, b).statistic) < 4 / len(a) ** 0.5


@every
@pytest.mark.parametrize("cuts", [[0, 4, 8, 12], [0, 1, 12], [0, 5, 6, 11, 12]])
def test_a_sample_does_not_depend_on_its_batch(method, cuts):
    field, x0 = gaussian(), standard_normal(12, 3)
    whole = integrate(field, x0, uniform_grid(6), seeded(method, 7, 100))
    parts = [integrate(field, x0[a:b], uniform_grid(6), seeded(method, 7, 100 + a)) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)


@every
def test_only_a_stochastic_solver_depends_on_seed_and_start(method):
    field, x0 = gaussian(), standard_normal(4, 3)
    a, again, b, c = (
        integrate(field, x0, uniform_grid(3), seeded(method, seed, start))
        for seed, start in ((0, 0), (0, 0), (1, 0), (0, 4))
    )
    assert torch.equal(a, again)
    assert (seeded(method, 5, 6) is method) is not method.stochastic
    assert {torch.equal(a, other) for other in (b, c)} == {not method.stochastic}


# What all share.
@every
@pytest.mark.parametrize("knots", [[], [0.5], [0, 0], [0, 0.5, 0.5, 1], [0, 0.6, 0.5, 1], [1, 0.2, 0.3]])
def test_a_grid_that_is_not_monotone_is_refused(method, knots):
    with pytest.raises(ValueError, match="strictly monotone with at least 2 knots"):
        integrate(lambda x, t, label: x, torch.zeros(1, 1), torch.tensor(knots, dtype=torch.float64), method)


@every
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_evaluations_are_steps_times_stages(method, steps):
    field = Counted(lambda x, t, label: x)
    integrate(field, torch.zeros(2, 1), uniform_grid(steps), method)
    assert field.nfe == steps * method.stages
    assert steps_for(method, field.nfe) == steps
    twice = Counted(lambda x, t, label: x)
    label = torch.zeros(2, dtype=torch.int64)
    integrate(guided(twice, Guidance(2.0), 1), torch.zeros(2, 1), uniform_grid(steps), method, label)
    assert twice.nfe == 2 * field.nfe
    assert steps_for(method, twice.nfe, passes=2) == steps


@every
@pytest.mark.parametrize("passes", [1, 2])
def test_evaluations_that_no_number_of_steps_costs_are_refused(method, passes):
    cost = method.stages * passes
    for nfe in {0, -cost, cost + 1 if cost > 1 else 0}:
        with pytest.raises(ValueError, match=rf"{cost} evaluations a step( under guidance)? cannot spend {nfe}"):
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


# Optimised grids.
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
