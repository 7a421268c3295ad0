"""Time samplers for training and time grids for sampling.

A sampler is a frozen value; calling it with a count and a generator draws that many times in [0, 1]. Its
fields are its parameters, its `name` is what `params.yaml` calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import expm1
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
