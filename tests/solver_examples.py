"""Solvers by what they promise, fields to integrate, and what scipy makes of these."""

from math import log2

import pytest
import torch
from scipy.integrate import solve_ivp

from fmcore.analytic import gaussian_field, mixture_field
from fmcore.flow import rng
from fmcore.ode.solvers import SOLVERS, Tableau

# Gaussian to Gaussian would not do: its symmetry makes midpoint third order.
MIXTURES = {
    "1-D": (torch.tensor([0.4, 0.6]), torch.tensor([[-1.5], [1.0]]), torch.tensor([0.5, 0.4])),
    "2-D": (torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 1.0]]), torch.tensor([0.6, 0.4])),
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


def field_and_noise(kind):
    """The field to one of the mixtures and some noise, in float64."""
    weights, means, stds = (value.double() for value in MIXTURES[kind])
    x0 = torch.randn((32, means.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mixture_field(weights, means, stds), x0
