"""The exact fields of every path carry its exact marginals."""

from math import exp

import pytest
import torch
from torch import distributions

from fmcore.analytic import atoms_field, mixture_field, mixture_score
from fmcore.flow.paths import Discrete
from fmcore.flow.times import uniform_grid
from fmcore.ode.solvers import SOLVERS, integrate
from path_examples import MIXTURES, between, derivative, each_path, f64, on_path, pairs, times

pytestmark = pytest.mark.numerics


def log_density(path, x, t):
    """log p_t(x) of the path from noise to the mixture, from torch's own distributions."""
    weights, means, stds = MIXTURES[x.shape[1]]
    a, s, _, _ = path(t)
    spread = (s[:, None] ** 2 + a[:, None] ** 2 * stds**2).sqrt()
    parts = distributions.Normal(a[:, None, None] * means, spread[:, :, None].expand(-1, -1, x.shape[1]))
    chosen = distributions.Categorical(weights.expand(len(x), -1))
    return distributions.MixtureSameFamily(chosen, distributions.Independent(parts, 1)).log_prob(x)


@each_path
@pytest.mark.parametrize("dims", MIXTURES)
def test_score_is_the_gradient_of_the_log_density(path, dims):
    t = times(path, 100)
    x = on_path(path, dims, t)[0].requires_grad_()
    score = mixture_score(*MIXTURES[dims], path)(x, t, None)
    torch.testing.assert_close(score, derivative(log_density(path, x, t), x), rtol=1e-9, atol=1e-9)


@each_path
@pytest.mark.parametrize("dims", MIXTURES)
def test_marginals_and_field_satisfy_the_continuity_equation(path, dims):
    """d/dt log p + div v + v . grad log p = 0, everything by automatic differentiation."""
    t = times(path, 100).requires_grad_()
    x = on_path(path, dims, t.detach())[0].requires_grad_()
    density = log_density(path, x, t)
    v = mixture_field(*MIXTURES[dims], path)(x, t, None)
    divergence = sum(derivative(v[:, i], x)[:, i] for i in range(dims))
    carried = divergence + (v * derivative(density, x)).sum(1)
    change = derivative(density, t)
    torch.testing.assert_close(carried, -change, rtol=1e-8, atol=1e-8)
    assert change.abs().mean() > 0.1


@each_path
def test_field_is_the_posterior_average_over_atoms(path):
    atoms = f64(-2.0, 0.0, 1.0, 1.5, 2.0, -1.0).reshape(3, 2)
    t = between(path, 40)
    x = 1.5 * path(t).s[:, None] * pairs(40, (2,), 3)[0]
    found = atoms_field(atoms, path)(x, t, None)
    a, s, da, ds = path(t)
    for i in range(40):
        noise = [(x[i] - a[i] * atom) / s[i] for atom in atoms]  # what must have been x_0 with that atom as x_1
        likelihood = [exp(-float(n @ n) / 2) for n in noise]
        total = sum(
            w * (da[i] * atom + ds[i] * n) for w, atom, n in zip(likelihood, atoms, noise, strict=True)
        ) / sum(likelihood)
        torch.testing.assert_close(found[i], total, rtol=1e-8, atol=1e-8)


@each_path
def test_flow_to_a_gaussian_is_the_closed_form(path):
    """Mean a m and variance s^2 + a^2 tau^2, along t and back; nothing that runs against time does."""
    mean, std = 3.0, 0.5
    field = mixture_field(f64(1.0), f64(mean)[:, None], f64(std), path)
    grid = uniform_grid(100)[5:96]  # away from the ends, where VP's clock races
    start, middle, end = (f64(float(grid[i])) for i in (0, 50, -1))
    z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]

    def at(t):
        a, s, _, _ = path(t)
        return a * mean + (s**2 + a**2 * std**2).sqrt() * z

    # Between the knots of a table its velocity is smooth, at them it jumps: no method keeps its order there.
    near = {"rtol": 1e-2, "atol": 1e-2} if isinstance(path, Discrete) else {"rtol": 2e-5, "atol": 2e-5}
    for knots, one, other in (
        (grid[:51], start, middle),
        (grid[50:], middle, end),
        (grid[:51].flip(0), middle, start),
    ):
        torch.testing.assert_close(integrate(field, at(one), knots, SOLVERS["rk4"]), at(other), **near)
