"""Time samplers against their densities; grids."""

from math import pi, sin

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from fmcore.flow.rng import generator
from fmcore.flow.times import (
    GRIDS,
    TIMES,
    CosineGrid,
    EDMGrid,
    KGrid,
    LogitNormal,
    OptimisedGrid,
    SigmoidGrid,
    Uniform,
    UniformGrid,
    UShaped,
    uniform_grid,
)

pytestmark = pytest.mark.numerics

COUNT = 50_000


def cdf_of(density):
    """The distribution function of an unnormalised density on [0, 1], by quadrature."""
    knots = np.linspace(0, 1, 20_001)
    mass = integrate.cumulative_simpson(density(knots), x=knots, initial=0)
    return lambda t: np.interp(t, knots, mass / mass[-1])


CDFS = [
    (Uniform(), stats.uniform.cdf),
    (LogitNormal(), lambda t: stats.norm.cdf(special.logit(t))),
    (LogitNormal(mean=-0.5, std=0.7), lambda t: stats.norm.cdf(special.logit(t), loc=-0.5, scale=0.7)),
    (UShaped(), cdf_of(lambda t: np.exp(4 * t) + np.exp(4 * (1 - t)))),
    (UShaped(a=1.0), cdf_of(lambda t: np.cosh(t - 0.5))),
]


@pytest.mark.parametrize(("sampler", "cdf"), CDFS, ids=[str(sampler) for sampler, _ in CDFS])
def test_sampler_follows_its_density(sampler, cdf):
    drawn = sampler(COUNT, generator(0, "times")).double().numpy()
    assert stats.kstest(drawn, cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", TIMES)
def test_sampler_draws_times_from_the_generator_alone(name):
    draw = TIMES[name]()
    first = draw(1000, generator(0, "times"))
    assert first.shape == (1000,)
    assert first.dtype == torch.float32
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, draw(1000, generator(0, "times")))
    torch.manual_seed(1)
    assert torch.equal(first, draw(1000, generator(0, "times")))


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_k_grid_visits_the_times_of_an_euler_sampler_equally_often(k):
    t = KGrid(k=k)(COUNT, generator(1, "times"))
    values, counts = t.unique(return_counts=True)
    torch.testing.assert_close(values, uniform_grid(k)[:-1].float())
    if k > 1:
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "bad",
    [
        lambda: LogitNormal(std=0.0),
        lambda: UShaped(a=-1.0),
        lambda: UShaped(a=51.0),
        lambda: KGrid(k=0),
        lambda: uniform_grid(0),
        lambda: SigmoidGrid(kappa=0.0),
        lambda: SigmoidGrid(kappa=-10.0),
        lambda: SigmoidGrid(kappa=31.0),
        lambda: EDMGrid(rho=0.0),
        lambda: EDMGrid(rho=-7.0),
        lambda: EDMGrid(sigma_min=0.0),
        lambda: EDMGrid(sigma_min=-1.0),
        lambda: EDMGrid(sigma_min=2.0, sigma_max=1.0),
        lambda: EDMGrid(sigma_min=1.0, sigma_max=1.0),
        lambda: OptimisedGrid(trajectories=0),
    ],
)
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(ValueError, match=r"needs .*-?\d"):
        bad()


# Besides the defaults, grids at the ends of what their parameters may be.
FAMILY = {
    **{name: make() for name, make in GRIDS.items()},
    "sigmoid, nearly uniform": SigmoidGrid(kappa=0.01),
    "sigmoid, steep": SigmoidGrid(kappa=30.0),
    "edm, one sigma after another": EDMGrid(rho=1.0),
    "edm, rho of 1": EDMGrid(rho=1.0, sigma_min=0.1, sigma_max=2.0),
    "edm, narrow": EDMGrid(sigma_min=1.0, sigma_max=1.001),
    "edm, wide": EDMGrid(sigma_min=1e-6, sigma_max=1e6),
}


@pytest.mark.parametrize("name", FAMILY)
def test_a_grid_runs_from_exactly_0_to_exactly_1(name):
    for steps in range(1, 65):
        grid = FAMILY[name](steps)
        assert grid.dtype == torch.float64
        assert grid.shape == (steps + 1,)
        assert (grid[0], grid[-1]) == (0, 1)
        assert (grid.diff() > 0).all()
        assert torch.equal(grid, FAMILY[name](steps))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("steps", [0, -1, -64])
def test_a_grid_without_steps_is_refused(name, steps):
    with pytest.raises(ValueError, match=f"at least 1 step, got {steps}"):
        FAMILY[name](steps)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_a_value_under_its_name(name):
    assert GRIDS[name]() == GRIDS[name](name=name)
    assert GRIDS[name]().name == name
    assert hash(GRIDS[name]()) == hash(GRIDS[name]())


@pytest.mark.parametrize("name", [n for n, grid in FAMILY.items() if not isinstance(grid, EDMGrid)])
@pytest.mark.parametrize("steps", [1, 2, 5, 64])
def test_grids_other_than_edm_s_are_symmetric(name, steps):
    grid = FAMILY[name](steps)
    torch.testing.assert_close(grid.flip(0), 1 - grid, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_uniform_grid(steps):
    grid = uniform_grid(steps)
    assert grid.tolist() == pytest.approx([i / steps for i in range(steps + 1)])
    assert torch.equal(UniformGrid()(steps), grid)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_cosine_grid_s_knots_are_even_on_a_half_circle(steps):
    """By another formula: sin^2 of half the angle."""
    assert CosineGrid()(steps).tolist() == pytest.approx([sin(pi * i / steps / 2) ** 2 for i in range(steps + 1)])


@pytest.mark.parametrize("kappa", [0.5, 10.0, 20.0])
def test_sigmoid_grid_s_knots_are_even_in_logits(kappa):
    """Unstretched, they are logistic at even distances of kappa / steps."""
    steps = 12
    grid = SigmoidGrid(kappa)(steps).numpy()
    low, high = special.expit(-kappa / 2), special.expit(kappa / 2)
    logits = special.logit(low + grid * (high - low))
    np.testing.assert_allclose(np.diff(logits), kappa / steps, rtol=1e-6)


def test_sigmoid_grid_shrinks_its_end_steps_as_kappa_grows():
    first = [float(SigmoidGrid(kappa)(16)[1]) for kappa in (0.01, 1.0, 5.0, 10.0, 20.0)]
    assert first[0] == pytest.approx(1 / 16, rel=1e-3)
    assert first == sorted(first, reverse=True)


@pytest.mark.parametrize("steps", [2, 3, 18, 40])
@pytest.mark.parametrize(
    "settings", [{}, {"rho": 3.0}, {"sigma_min": 0.01, "sigma_max": 10.0}], ids=["default", "rho", "range"]
)
def test_edm_grid_is_the_one_of_diffusers(steps, settings):
    """Karras et al., eq. 5; x = x_0 sigma + x_1 is ours at t = 1 / (1 + sigma) up to scale."""
    diffusers = pytest.importorskip("diffusers")
    config = {"rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0, **settings}
    scheduler = diffusers.EDMEulerScheduler(**config)
    scheduler.set_timesteps(steps)
    grid = EDMGrid(**settings)(steps)
    np.testing.assert_allclose(grid[1:], 1 / (1 + scheduler.sigmas.double()[1:]), rtol=1e-6)


@pytest.mark.parametrize("steps", [2, 3, 18])
def test_edm_grid_by_hand(steps):
    grid = EDMGrid()(steps).tolist()
    for i in range(1, steps):
        sigma = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert grid[i] == pytest.approx(1 / (1 + sigma), rel=1e-12)
    assert 1 / grid[-2] - 1 == pytest.approx(0.002)
