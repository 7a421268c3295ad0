"""Points in the plane, drawn from formulas."""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from torch import Generator, Tensor

from fmcore.disk.dataset import Dataset
from fmcore.flow import rng

POINTS_HELD_OUT = 10_000


def _checkerboard(count: int, g: Generator) -> Tensor:
    column = torch.randint(4, (count,), generator=g)
    row = 2 * torch.randint(2, (count,), generator=g) + column % 2
    return torch.stack([column, row], 1) * 2 - 4 + 2 * torch.rand(count, 2, generator=g)


def _eight_gaussians(count: int, g: Generator) -> Tensor:
    angle = torch.randint(8, (count,), generator=g) * (pi / 4)
    centre = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.2 * torch.randn(count, 2, generator=g)


def _moons(count: int, g: Generator) -> Tensor:
    angle = pi * torch.rand(count, generator=g)
    upper = torch.rand(count, generator=g) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return 2 * (torch.stack([x - 0.5, y - 0.25], 1) + 0.06 * torch.randn(count, 2, generator=g))


@dataclass(frozen=True)
class _Points:
    count: int = 100_000

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return (2,)

    def _load(self, sampler: Callable[[int, Generator], Tensor]) -> Dataset:
        name = sampler.__name__
        x1 = sampler(self.count, rng.generator(0, f"data/{name}"))
        return Dataset(x1, None, None, sampler(POINTS_HELD_OUT, rng.generator(0, f"data/{name}/held-out")))


@dataclass(frozen=True)
class Checkerboard(_Points):
    """Uniform on the 8 dark squares of a 4x4 board on [-4, 4]^2, the classic first demo."""

    name: Literal["checkerboard"] = "checkerboard"

    def load(self) -> Dataset:
        """(count, 2) float32."""
        return self._load(_checkerboard)


@dataclass(frozen=True)
class EightGaussians(_Points):
    """Eight Gaussians of standard deviation 0.2 on a circle of radius 3."""

    name: Literal["eight_gaussians"] = "eight_gaussians"

    def load(self) -> Dataset:
        """(count, 2) float32."""
        return self._load(_eight_gaussians)


@dataclass(frozen=True)
class Moons(_Points):
    """Two interleaved half circles, centred and doubled in size."""

    name: Literal["moons"] = "moons"

    def load(self) -> Dataset:
        """(count, 2) float32."""
        return self._load(_moons)
