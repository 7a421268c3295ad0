"""Time samplers for training and time grids for sampling.

A sampler is a frozen value; calling it with a count and a generator draws that many times in [0, 1]. A grid is one
too; calling it with a number of steps gives their knots from 0 to 1. `name` is its name in `params.yaml`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import expm1, pi
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

TimeSampler = Callable[[int, Generator], Tensor]


def _rand(count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Uniform:
    """t ~ U[0, 1)."""

    name: Literal["uniform"] = "uniform"

    def __call__(self, count: int, generator: Generator) -> Float[Tensor, " count"]:
        return _rand(count, generator)


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mean + std * n), n ~ N(0, 1): mass in the middle (Esser et al., arXiv:2403.03206, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0
    name: Literal["logit_normal"] = "logit_normal"

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"logit_normal needs std > 0, got {self.std}")

    def __call__(self, count: int, generator: Generator) -> Float[Tensor, " count"]:
        n = torch.randn(count, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.std * n)


@dataclass(frozen=True)
class UShaped:
    """p(t) proportional to exp(a t) + exp(a (1 - t)): mass at both ends.

    Lee et al., "Improving the Training of Rectified Flows" (arXiv:2405.20320), section 4.1, with a = 4. The
    density is a mixture of two truncated exponentials, so it is drawn in closed form: invert one, then mirror
    it with probability 1/2.
    """

    a: float = 4.0
    name: Literal["u_shaped"] = "u_shaped"

    def __post_init__(self) -> None:
        if not 0 < self.a <= 50:  # exp(a) must stay a float32
            raise ValueError(f"u_shaped needs 0 < a <= 50, got {self.a}")

    def __call__(self, count: int, generator: Generator) -> Float[Tensor, " count"]:
        t = torch.log1p(_rand(count, generator) * expm1(self.a)) / self.a
        return torch.where(_rand(count, generator) < 0.5, t, 1 - t)


@dataclass(frozen=True)
class KGrid:
    """t uniform over {0, 1/k, ..., (k-1)/k}: the times a k-step Euler sampler visits (Liu et al., section 3.2)."""

    k: int = 1
    name: Literal["k_grid"] = "k_grid"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k_grid needs k >= 1, got {self.k}")

    def __call__(self, count: int, generator: Generator) -> Float[Tensor, " count"]:
        i = torch.randint(self.k, (count,), generator=generator, device=generator.device)
        return i.to(torch.get_default_dtype()) / self.k


Times = Uniform | LogitNormal | UShaped | KGrid
TIMES = {sampler.name: sampler for sampler in get_args(Times)}


def uniform_grid(steps: int) -> Float[Tensor, " knots"]:
    """The grid 0, 1/steps, ..., 1 in float64; `steps + 1` knots. Flip it to integrate from data to noise."""
    if steps < 1:
        raise ValueError(f"a time grid needs at least 1 step, got {steps}")
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class UniformGrid:
    """Equal steps."""

    name: Literal["uniform"] = "uniform"

    def __call__(self, steps: int) -> Float[Tensor, " knots"]:
        return uniform_grid(steps)


@dataclass(frozen=True)
class CosineGrid:
    """t = (1 - cos(pi u)) / 2: small steps at both ends."""

    name: Literal["cosine"] = "cosine"

    def __call__(self, steps: int) -> Float[Tensor, " knots"]:
        return (1 - torch.cos(pi * uniform_grid(steps))) / 2


@dataclass(frozen=True)
class SigmoidGrid:
    """t = sigmoid(kappa (u - 1/2)), stretched to [0, 1]: ever smaller steps at both ends as kappa grows.

    Kim et al., "Simple ReFlow" (arXiv:2410.07815), section 5.
    """

    kappa: float = 10.0
    name: Literal["sigmoid"] = "sigmoid"

    def __post_init__(self) -> None:
        if not 0.01 <= self.kappa <= 30:  # beyond it the first knots of fine grids coincide
            raise ValueError(f"sigmoid needs 0.01 <= kappa <= 30, got {self.kappa}")

    def __call__(self, steps: int) -> Float[Tensor, " knots"]:
        s = torch.sigmoid(self.kappa * (uniform_grid(steps) - 0.5))
        return (s - s[0]) / (s[-1] - s[0])


@dataclass(frozen=True)
class EDMGrid:
    """sigma^(1/rho) falls in equal steps from sigma_max to sigma_min, then to 0; t = 1 / (1 + sigma).

    Karras et al. (arXiv:2206.00364), eq. 5. Its first knot is moved to t = 0, where our noise is.
    """

    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    name: Literal["edm"] = "edm"

    def __post_init__(self) -> None:
        if not 1 <= self.rho <= 100 or not 1e-6 <= self.sigma_min < self.sigma_max <= 1e6:
            raise ValueError(f"edm needs 1 <= rho <= 100 and 1e-6 <= sigma_min < sigma_max <= 1e6, got {self}")

    def __call__(self, steps: int) -> Float[Tensor, " knots"]:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        u = uniform_grid(max(steps - 1, 1))[: len(uniform_grid(steps)) - 1]
        t = 1 / (1 + (high + u * (low - high)) ** self.rho)
        return torch.cat([torch.zeros_like(t[:1]), t[1:], torch.ones_like(t[:1])])


@dataclass(frozen=True)
class OptimisedGrid:
    """A grid fitted to a model, a solver and a number of steps; see `fmcore.ode.sampling.optimised_grid`."""

    trajectories: int = 64
    name: Literal["optimised"] = "optimised"

    def __post_init__(self) -> None:
        if self.trajectories < 1:
            raise ValueError(f"optimised needs trajectories >= 1, got {self.trajectories}")


FixedGrid = UniformGrid | CosineGrid | SigmoidGrid | EDMGrid
Grid = FixedGrid | OptimisedGrid
GRIDS = {grid.name: grid for grid in get_args(FixedGrid)}
