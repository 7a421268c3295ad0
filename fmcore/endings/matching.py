"""How ends are matched to data: what the matched flow does, and what a flow map may do beside its own ending."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from fmcore.endings.spaces import Space
from fmcore.endings.target import Target
from fmcore.flow.couplings import Pairs
from fmcore.flow.fields import MapField
from fmcore.flow.paths import expand


@dataclass(frozen=True)
class Matching:
    """Matching of predicted ends to data by an energy distance.

    Main arguments:
        at_noise: share of each batch whose ends are predicted at t = 0; the rest is at one later t.
        start: share of the training from which on ends are matched.
        weight: of each energy distance; there is one for each group (t = 0, later t) in each space.
        real: number of data drawn in each step.
        spaces: where ends are compared; `auto` chooses by `fmcore.endings.spaces.chosen`.
    """

    at_noise: float
    start: float
    weight: float
    real: int
    spaces: Literal["auto"] | tuple[Space, ...]

    def __post_init__(self) -> None:
        if not 0 < self.at_noise <= 1 or not 0 <= self.start < 1:
            raise ValueError(f"matching needs at_noise in (0, 1] and start in [0, 1), got {self}")
        if self.weight <= 0 or self.real < 2 or not self.spaces:
            raise ValueError(f"matching needs weight > 0, real >= 2 and a space, got {self}")

    @property
    def passes(self) -> float:
        """Evaluations of a network that matching a flow map adds for each image, in the mean."""
        return (1 - self.start) * (3 - self.at_noise)  # the ends, the base's of them, and steps to t

    def sizes(self, batch_size: int) -> tuple[int, int]:
        """How many of a batch are at t = 0, and how many at a later time."""
        first = max(1, round(self.at_noise * batch_size))
        return first, batch_size - first

    def drawn(
        self, target: Target | None, generator: Generator, progress: float
    ) -> tuple[Tensor, Tensor | None] | None:
        """The data of a step; None before the matching starts."""
        return target.draw(self.real, generator) if target and progress >= self.start else None

    def of_map(
        self,
        field: MapField,
        pairs: Pairs,
        t: Tensor,
        target: Target,
        real: tuple[Tensor, Tensor | None],
    ) -> Tensor:
        """The weighted distances of a flow map's ends X(x; ., 1) from the data.

        The first pairs' noise is carried from 0 to 1. The rest is carried from 0 to t first, as one step of the
        map's own would do, and then to 1. `t` holds this one time for each pair, (B,).
        """
        first, later = self.sizes(len(pairs.x0))
        x, label, on = pairs.x0, pairs.label, t[first:]
        if later:
            with torch.no_grad():
                u = field.mean(x[first:], torch.zeros_like(on), on, None if label is None else label[first:])
                x = torch.cat([x[:first], x[first:] + expand(on, u) * u])
        t = torch.cat([t.new_zeros(first), on])
        ends = x + expand(1 - t, x) * field.mean(x, t, torch.ones_like(t), label)
        groups = [part for part in (slice(first), slice(first, None)) if len(ends[part])]
        return self.weight * target.distances(ends, label, groups, real)
