"""Stochastic solvers against exact laws and the moments of their recursion."""

from dataclasses import replace
from itertools import combinations, pairwise
from math import log2

import numpy as np
import pytest
import torch
from scipy import stats

from fmcore.analytic import gaussian_rectified_field, mixture_field
from fmcore.flow.times import GRIDS, uniform_grid
from fmcore.ode.solvers import SOLVERS, EulerMaruyama, integrate, seeded, trajectory
from solver_examples import EULER, MIXTURES, every, f64, field_and_noise, gaussian, standard_normal, stochastic

pytestmark = pytest.mark.numerics


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request):
    """A field and some noise, in float64."""
    return field_and_noise(request.param)


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
    assert -0.05 <= a < 0.5
    assert -0.05 <= b < 0.5


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

    assert bias(32) > 15 * (2 / x0.numel()) ** 0.5
    assert log2(bias(16) / bias(32)) == pytest.approx(method.order, abs=0.25)


@pytest.mark.parametrize("s1", [0.5, 2.0])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_ancestral_draws_have_the_moments_of_the_posterior_of_a_ddpm(steps, s1):
    """In a DDPM's own terms: y = x / t = x_1 + r noise with r = (1 - t) / t falls from noise to data."""
    m, v = 0.0, 1.0  # of x at t = 0, where y is infinite and tells nothing
    for i in range(steps):
        t, s = i / steps, (i + 1) / steps
        slope = t * s1**2 / (t**2 * s1**2 + (1 - t) ** 2)  # of the mean of x_1 given x_t
        share = 0.0 if t == 0 else (((1 - s) / s) / ((1 - t) / t)) ** 2  # of y_t in the posterior's mean
        of_x = s * ((share / t if t else 0.0) + (1 - share) * slope)
        m, v = of_x * m + s * (1 - share) * (1.5 - slope * t * 1.5), of_x**2 * v + (1 - s) ** 2 * (1 - share)
    x0 = standard_normal(200, 1000)
    x = integrate(gaussian(m1=1.5, s1=s1), x0, uniform_grid(steps), SOLVERS["ancestral"])
    assert float(x.mean()) == pytest.approx(m, abs=4 * (v / x.numel()) ** 0.5 + 1e-9)
    assert float(x.var()) == pytest.approx(v, rel=4 * (2 / x.numel()) ** 0.5, abs=1e-9)


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
