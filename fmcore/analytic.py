"""Velocity fields with exact answers: tests, docs and benchmarks measure everything else against them.

All are marginal velocities of the linear path x_t = (1 - t) x_0 + t x_1 with x_0 and x_1 independent,
v(x, t) = E[x_1 - x_0 | x_t = x].
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.fields import VelocityField
from fmcore.paths import expand


def gaussian_field(m0: Tensor, s0: Tensor, m1: Tensor, s1: Tensor) -> VelocityField:
    """The field from N(m0, diag(s0^2)) to N(m1, diag(s1^2)).

    v = (m1 - m0) + (t s1^2 - (1-t) s0^2) / ((1-t)^2 s0^2 + t^2 s1^2) (x - m_t), m_t = (1-t) m0 + t m1.
    """

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        t = expand(t, x)
        mean = (1 - t) * m0 + t * m1
        variance = (1 - t) ** 2 * s0**2 + t**2 * s1**2
        return (m1 - m0) + (t * s1**2 - (1 - t) * s0**2) / variance * (x - mean)

    return field


def gaussian_flow(m0: Tensor, s0: Tensor, m1: Tensor, s1: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Where `gaussian_field` carries x0 by time t: m_t + (s_t / s0) (x0 - m0)."""
    t = expand(t, x0)
    spread = ((1 - t) ** 2 * s0**2 + t**2 * s1**2).sqrt()
    return (1 - t) * m0 + t * m1 + spread / s0 * (x0 - m0)


def gaussian_rectified_field(m0: Tensor, s0: Tensor, m1: Tensor, s1: Tensor) -> VelocityField:
    """The field after one reflow of `gaussian_field`: straight lines x0 -> m1 + k (x0 - m0), k = s1 / s0.

    The line through x at time t starts at x0 = (x - t (m1 - k m0)) / ((1 - t) + t k).
    """
    k = s1 / s0

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        t = expand(t, x)
        x0 = (x - t * (m1 - k * m0)) / ((1 - t) + t * k)
        return m1 + k * (x0 - m0) - x0

    return field


def mixture_field(
    weights: Float[Tensor, " K"], means: Float[Tensor, "K D"], stds: Float[Tensor, " K"]
) -> VelocityField:
    """The field from N(0, I) to the mixture sum_k weights_k N(means_k, stds_k^2 I), on points (B, D).

    Given component k, x_t ~ N(t means_k, var_k I) with var_k = (1-t)^2 + t^2 stds_k^2, so v is the mean of the
    components' Gaussian velocities under their posterior weights.
    """

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        t = t[:, None]
        variance = (1 - t) ** 2 + t**2 * stds**2
        gap = x[:, None, :] - t[:, :, None] * means
        logits = weights.log() - gap.square().sum(2) / (2 * variance) - x.shape[1] / 2 * variance.log()
        slope = (t * stds**2 - (1 - t)) / variance
        velocity = means + slope[:, :, None] * gap
        return (torch.softmax(logits, 1)[:, :, None] * velocity).sum(1)

    return field


def atoms_field(atoms: Float[Tensor, "K D"]) -> VelocityField:
    """The field from N(0, I) to a finite set of points, each equally likely.

    v = (sum_k w_k a_k - x) / (1 - t) with w = softmax(-|x - t a_k|^2 / (2 (1-t)^2)): what a perfect network
    learns from finite data. It is the mixture with standard deviation 0; t = 1 is outside its domain.
    """
    count = len(atoms)
    return mixture_field(atoms.new_full((count,), 1 / count), atoms, atoms.new_zeros(count))


def sample_mixture(
    weights: Float[Tensor, " K"],
    means: Float[Tensor, "K D"],
    stds: Float[Tensor, " K"],
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "count D"]:
    """Draws from the mixture of `mixture_field`."""
    k = torch.multinomial(weights, count, replacement=True, generator=generator)
    n = torch.randn((count, means.shape[1]), generator=generator, dtype=means.dtype)
    return means[k] + stds[k, None] * n
