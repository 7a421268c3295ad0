"""The density a velocity field gives to data, and bits per dimension for data on a grid of levels.

Along dx/dt = v(x, t) the log density falls at the rate of the divergence (Chen et al., arXiv:1806.07366):
    log p_1(x_1) = log N(x_0; 0, I) - int_0^1 div v(x_t, t) dt
with x_0 found from x_1 by integrating backwards (Lipman et al., arXiv:2210.02747, appendix C). The divergence is
one more column of the state, so the solvers are those of sampling.
"""

from math import log, log2, pi, prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.flow import rng
from fmcore.flow.fields import Field, VelocityField, as_field
from fmcore.ode.solvers import Solver, grid_of, integrate, integrate_adaptive
from fmcore.ode.solvers import solver as named_solver

CELLS = 4096  # values the noise takes in a bin; all are farther from the bin's edges than float32 rounds


class Tolerances(NamedTuple):
    """Relative and absolute tolerance of the adaptive solver; its step control looks at the whole batch."""

    rtol: float
    atol: float


def _directions(x1: Tensor, probes: int, seed: int, start: int) -> Float[Tensor, "K B D"]:
    """The directions e of e^T J e: every axis, or random signs for each sample."""
    dims = prod(x1.shape[1:])
    if probes == 0:
        return torch.eye(dims, dtype=x1.dtype, device=x1.device)[:, None].expand(dims, len(x1), dims)
    normal = rng.noise(seed, "likelihood", start, len(x1), (probes, dims)).transpose(0, 1).to(x1)
    return torch.where(normal < 0, -1.0, 1.0).to(x1)


def _with_divergence(field: VelocityField, shape: torch.Size, directions: Tensor, scale: float) -> VelocityField:
    """The field on flat rows (x, l) with dl/dt = div v, as scale * sum of e^T (dv/dx) e over the directions e."""

    def augmented(state: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        with torch.enable_grad():
            x = state[:, :-1].reshape(shape).detach().requires_grad_()
            v = field(x, t, label)
            trace = state.new_zeros(len(state))
            for e in directions:
                (pulled,) = torch.autograd.grad(v, x, e.reshape(shape), retain_graph=True)
                trace = trace + (pulled.flatten(1) * e).sum(1)
        return torch.cat([v.detach().flatten(1), scale * trace[:, None]], 1)

    return augmented


def log_likelihood(
    field: Field,
    x1: Float[Tensor, "B *D"],
    grid: Float[Tensor, " knots"] | int,
    solver: Solver | str | Tolerances,
    *,
    label: Int64[Tensor, " B"] | None = None,
    probes: int = 0,
    seed: int = 0,
    start: int = 0,
) -> Float[Tensor, " B"]:
    """The natural logarithm of the density at x1, in x1's dtype, of the flow that starts as noise N(0, I).

    Main arguments:
        field: differentiable in x; no row may influence another.
        grid: times from noise to data, as for sampling, or a number of equal steps; it is walked backwards.
        solver: a deterministic one, its name, or `Tolerances` for the adaptive one, which uses the grid's ends.
        probes: 0 for the exact divergence, at D vector-Jacobian products an evaluation; otherwise the number
            of Rademacher probes of Hutchinson's unbiased estimate, each kept along the whole trajectory
            (Grathwohl et al., FFJORD, arXiv:1810.01367).
        seed: of the probes; row i has those of sample `start + i`, however the samples are batched.

    Raises:
        ValueError: if the solver is stochastic, `probes` is negative or the grid does not rise.

    Example:
        >>> from fmcore import analytic
        >>> from fmcore.flow import times
        >>> from fmcore.ode import solvers
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> field = analytic.gaussian_field(zero, one, zero, 3 * one)
        >>> log_p = log_likelihood(field, torch.zeros(1, 1), times.uniform_grid(32), solvers.SOLVERS["rk4"])
        >>> f"{log_p.item():.3f}, exactly {torch.distributions.Normal(0.0, 3.0).log_prob(zero).item():.3f}"
        '-2.018, exactly -2.018'
    """
    grid = grid_of(grid)
    method = solver if isinstance(solver, Tolerances) else named_solver(solver)
    if getattr(method, "stochastic", False):
        raise ValueError("a stochastic sampler has no likelihood: choose a deterministic one")
    if probes < 0:
        raise ValueError(f"probes must be 0 (the exact divergence) or positive, got {probes}")
    if not grid[0] < grid[-1]:
        raise ValueError(f"grid must rise from noise to data, got {float(grid[0])} to {float(grid[-1])}")
    augmented = _with_divergence(
        as_field(field), x1.shape, _directions(x1, probes, seed, start), 1 / max(probes, 1)
    )
    state, back = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), 1)], 1), grid.flip(0)
    if isinstance(method, Tolerances):
        t, s = float(back[0]), float(back[-1])
        end = integrate_adaptive(augmented, state, t, s, rtol=method.rtol, atol=method.atol, label=label)
    else:
        end = integrate(augmented, state, back, method, label)
    x0, change = end[:, :-1], end[:, -1]  # change is minus the integral: it was walked backwards
    return change - x0.square().sum(1) / 2 - x0.shape[1] / 2 * log(2 * pi)


def uniform_dequantise(
    x1: Float[Tensor, "B *D"], width: float, *, seed: int, start: int = 0
) -> Float[Tensor, "B *D"]:
    """Adds uniform noise that fills the bin of this width around each level; `start` as in `log_likelihood`.

    8-bit images have width 2/255, the digits 1/8.
    """
    normal = rng.noise(seed, "dequantise", start, len(x1), tuple(x1.shape[1:])).double()
    cell: Tensor = (torch.special.ndtr(normal) * CELLS).floor()
    return x1 + (width * ((cell + 0.5) / CELLS - 0.5)).to(x1)


def bits_per_dim(log_p: Float[Tensor, " B"], dims: int, width: float) -> Float[Tensor, " B"]:
    """Bits each dimension takes, from log densities at uniformly dequantised data of levels `width` apart.

    A level's log probability is at least its bin's mean log density plus dims log(width), by Jensen's
    inequality, so the mean is an upper bound of the levels' own (Theis et al., arXiv:1511.01844, section 3.1).
    """
    return -log_p / (dims * log(2)) - log2(width)
