"""Velocity fields known in closed form, which tests, docs and benchmarks compare with.

Unless its docstring says otherwise, a field is the marginal velocity v(x, t) = E[u_t | x_t = x] of independent x_0
and x_1 on the linear path x_t = (1 - t) x_0 + t x_1. Means m0, m1 and standard deviations s0, s1 broadcast
against points x (B, *D).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.flow.fields import VelocityField
from fmcore.flow.paths import LINEAR, Coefficients, ProbPath, coefficients, expand


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


def _components(
    x: Tensor, c: Coefficients, weights: Tensor, means: Tensor, stds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior weights (B, K), gaps x - a m_k (B, K, D) and variances (B, K) of x_t's components."""
    variance = c.s**2 + c.a**2 * stds**2
    gap = x[:, None, :] - c.a[:, :, None] * means
    logits = weights.log() - gap.square().sum(2) / (2 * variance) - x.shape[1] / 2 * variance.log()
    return torch.softmax(logits, 1), gap, variance


def mixture_field(
    weights: Float[Tensor, " K"],
    means: Float[Tensor, "K D"],
    stds: Float[Tensor, " K"],
    path: ProbPath = LINEAR,
) -> VelocityField:
    """The field on a path from N(0, I) to the mixture sum_k weights_k N(means_k, stds_k^2 I), on points (B, D).

    Given component k, x_t ~ N(a means_k, var_k I) with var_k = s^2 + a^2 stds_k^2, whose velocity is a' means_k +
    var_k' / (2 var_k) (x - a means_k). v is the mean of these under the components' posterior weights.
    """

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        c = coefficients(path, t, x)
        posterior, gap, variance = _components(x, c, weights, means, stds)
        slope = (c.s * c.ds + c.a * c.da * stds**2) / variance
        velocity = c.da[:, :, None] * means + slope[:, :, None] * gap
        return (posterior[:, :, None] * velocity).sum(1)

    return field


def mixture_score(
    weights: Float[Tensor, " K"],
    means: Float[Tensor, "K D"],
    stds: Float[Tensor, " K"],
    path: ProbPath = LINEAR,
) -> VelocityField:
    """The score grad log p_t(x) of the marginals of `mixture_field`: the posterior mean of (a m_k - x) / var_k."""

    def score(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        posterior, gap, variance = _components(x, coefficients(path, t, x), weights, means, stds)
        return -(posterior / variance)[:, :, None].mul(gap).sum(1)

    return score


def atoms_field(atoms: Float[Tensor, "K D"], path: ProbPath = LINEAR) -> VelocityField:
    """The field on a path from N(0, I) to a finite set of points, each equally likely.

    On the linear path v = (sum_k w_k a_k - x) / (1 - t) with w = softmax(-|x - t a_k|^2 / (2 (1-t)^2)): what a
    perfect network learns from finite data. It is `mixture_field` with standard deviations 0. The field is not
    defined at t = 1, where the path has no noise left.
    """
    count = len(atoms)
    return mixture_field(atoms.new_full((count,), 1 / count), atoms, atoms.new_zeros(count), path)


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
