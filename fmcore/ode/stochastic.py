"""Stochastic solvers: other paths with the marginals of the ODE, for fields that give the score."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar

from torch import Tensor

from fmcore.flow import rng
from fmcore.flow.fields import VelocityField, velocity_at
from fmcore.flow.speed import moved


@dataclass(frozen=True)
class Noisy:
    """What stochastic solvers have in common.

    Main arguments:
        seed, start: the noise of step k for sample i depends on (seed, k, start + i) alone; see `seeded`.
    """

    seed: int = 0
    start: int = 0
    stages: ClassVar[int] = 1
    saved: ClassVar[int] = 0
    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    reversible: ClassVar[bool] = False

    def noise(self, k: int, x: Tensor) -> Tensor:
        """Standard normal noise like x."""
        z = rng.noise(self.seed, f"solver/{k}", self.start, len(x), tuple(x.shape[1:]))
        return moved(z, x.device).to(x.dtype)


@dataclass(frozen=True)
class Ancestral(Noisy):
    """From x_t to a draw of x_s given x_t and the predicted data: how a DDPM samples (arXiv:2006.11239, eqs. 6-7).

    On the linear path x_s = s (r t x + (1 - r t^2) x_1) + (1 - s) sqrt(1 - r t^2) z with x_1 = x + (1 - t) v and
    r = ((1 - s) / (s (1 - t)))^2. (Without noise, s x_1 + (1 - s) x_0, it is DDIM, which is Euler's method on the
    linear path.) The predicted data must be the mean of the data given x_t, which a rectified flow's is not.
    """

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        for k, (t, s) in enumerate(pairwise(knots)):
            x1 = x + (1 - t) * velocity_at(field, x, t, label)
            kept = ((1 - s) / (s * (1 - t))) ** 2
            x = s * (kept * t * x + (1 - kept * t**2) * x1)
            if s < 1:
                x = x + (1 - s) * sqrt(1 - kept * t**2) * self.noise(k, x)
            yield x


@dataclass(frozen=True)
class EulerMaruyama(Noisy):
    """dx = (v + g^2 / 2 score) dt + g dW with g^2 = 2 churn (1 - t): other paths with the ODE's marginals.

    Song et al. (arXiv:2011.13456), appendix D. On the linear path, with noise and data paired independently, the
    score is -(x - t v) / (1 - t), and this g keeps g^2 score finite (Ma et al., arXiv:2401.08740, section 2.3).
    The velocity of a rectified flow does not give the score. The last step adds no noise, which would stay in the
    sample.
    """

    churn: float = 1.0

    def walk(self, field: VelocityField, x: Tensor, knots: list[float], label: Tensor | None) -> Iterator[Tensor]:
        for k, (t, s) in enumerate(pairwise(knots)):
            v, h = velocity_at(field, x, t, label), s - t
            x = x + h * (v - self.churn * (x - t * v))
            if s < 1:
                x = x + sqrt(2 * self.churn * (1 - t) * h) * self.noise(k, x)
            yield x
