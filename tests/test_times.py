"""Time samplers against their densities; grids."""

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from fmcore.rng import generator
from fmcore.times import TIMES, KGrid, LogitNormal, Uniform, UShaped, uniform_grid

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
    [lambda: LogitNormal(std=0.0), lambda: UShaped(a=-1.0), lambda: KGrid(k=0), lambda: uniform_grid(0)],
    ids=["std", "a", "k", "steps"],
)
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(ValueError, match=r"-?[01]"):
        bad()


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_uniform_grid(steps):
    grid = uniform_grid(steps)
    assert grid.dtype == torch.float64
    assert grid.tolist() == pytest.approx([i / steps for i in range(steps + 1)])
    assert (grid[0], grid[-1]) == (0, 1)
    assert torch.allclose(grid.flip(0), 1 - grid)
