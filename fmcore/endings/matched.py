"""The matched flow: a rectified flow whose predicted ends are trained to have the distribution of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from fmcore.endings.maps import cut
from fmcore.endings.spaces import BATCH, Embedding, Scale, Space, energy, scale_of
from fmcore.flow.couplings import Coupling, Independent, Pairs, rows
from fmcore.flow.fields import Convention, VelocityField, network_field
from fmcore.flow.losses import Distance
from fmcore.flow.paths import LINEAR, expand
from fmcore.flow.pixels import floats
from fmcore.flow.speed import moved
from fmcore.flow.training import Objective

KEPT_BYTES = 2**30  # most memory for the data's features; a constant, so that a resumed run does the same
SCALED_BY = 4096  # most rows of data that scales are measured on


@dataclass(frozen=True)
class Matched:
    """A flow trained on pairs, whose predicted ends x_t + (1 - t) v are matched to data by an energy distance.

    A share `at_noise` of each batch is at t = 0. The rest is at one t, drawn from [0, 1) anew in each step: ends
    of several times could have the right distribution together and a wrong one at each time. Until `start` this is
    reflow. From then on, the rest lies on the flow's own trajectories: two Euler steps lead from a pair's noise to
    x_t, and the target velocity is the mean velocity of these steps. Otherwise the flow would be right on the
    lines between pairs, which none of its samplers visits.

    Main arguments:
        distance: between velocities.
        at_noise: share of each batch at t = 0.
        start: share of the training from which on ends are matched.
        weight: of each energy distance; there is one for each group (t = 0, later t) in each space.
        real: number of data drawn in each step.
        spaces: where ends are compared; `auto` chooses by `fmcore.endings.spaces.chosen`.
    """

    distance: Distance
    at_noise: float
    start: float
    weight: float
    real: int
    spaces: Literal["auto"] | tuple[Space, ...]
    name: Literal["matched"] = "matched"

    def __post_init__(self) -> None:
        if not 0 < self.at_noise <= 1 or not 0 <= self.start < 1:
            raise ValueError(f"matched needs at_noise in (0, 1] and start in [0, 1), got {self}")
        if self.weight <= 0 or self.real < 2 or not self.spaces:
            raise ValueError(f"matched needs weight > 0, real >= 2 and a space, got {self}")

    def sizes(self, batch_size: int) -> tuple[int, int]:
        """How many of a batch are at t = 0, and how many at a later time."""
        first = max(1, round(self.at_noise * batch_size))
        return first, batch_size - first

    def objective(
        self,
        coupling: Coupling,
        target: "Target | None",
        *,
        batch_size: int,
        precision: str,
        convention: Convention,
    ) -> Objective:
        """The student's objective; without a `target`, on the pairs alone."""
        if not len(coupling):
            raise ValueError("there is nothing to train on: the coupling holds no pairs")
        first, later = self.sizes(batch_size)

        def draw(generator: Generator, progress: float) -> Batch:
            pairs = coupling(batch_size, generator, progress)
            t = torch.rand(1, generator=generator, device=generator.device).expand(later)
            real = target.draw(self.real, generator) if target and progress >= self.start else None
            return Batch(cut(pairs, slice(first)), cut(pairs, slice(first, None)), t, real)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            field = network_field(network, precision, convention, LINEAR)
            at_noise, later, t, real = batch
            on_its_way = later.x1 - later.x0 if real is None else mean_of_two_steps(field, later, t)
            x_t = torch.cat([at_noise.x0, later.x0 + expand(t, later.x0) * on_its_way])
            u_t = torch.cat([at_noise.x1 - at_noise.x0, on_its_way])
            t = torch.cat([t.new_zeros(len(at_noise.x0)), t])
            label = (
                None if later.label is None or at_noise.label is None else torch.cat([at_noise.label, later.label])
            )
            v = field(x_t, t, label)
            total: Tensor = self.distance(v, u_t, x_t, t).mean()
            if real is None or target is None:
                return total
            ends = x_t + expand(1 - t, x_t) * v
            groups = (slice(len(at_noise.x0)), slice(len(at_noise.x0), None))
            return total + self.weight * target.distances(ends, label, [g for g in groups if len(ends[g])], real)

        slow = coupling.slow or (target is not None and target.data.slow)
        return Objective(draw, loss, slow, batch_size)


class Batch(NamedTuple):
    """Pairs at t = 0, pairs at the later times t, and the data that their ends are compared with."""

    at_noise: Pairs
    later: Pairs
    t: Tensor
    real: tuple[Tensor, Tensor | None] | None


@torch.no_grad()
def mean_of_two_steps(field: VelocityField, pairs: Pairs, t: Float[Tensor, " B"]) -> Float[Tensor, "B *D"]:
    """The mean velocity of two Euler steps from the pairs' noise at 0 to time t."""
    x0, label = pairs.x0, pairs.label
    v = field(x0, torch.zeros_like(t), label)
    return (v + field(x0 + expand(t / 2, x0) * v, t / 2, label)) / 2


@dataclass(frozen=True)
class Target:
    """The data in the spaces where a student's ends are matched to them.

    Main arguments:
        embed: samples to features in each space.
        data: what ends are matched to; with `flip`, its mirror images too.
        clip: ends are cut at +-1, as images are when they are written.
        scales: the data's own distances in each space.
        kept: features of all data in each space; None if they are too large, and are made of each draw.
    """

    embed: Embedding
    data: Independent
    flip: bool
    clip: bool
    scales: tuple[Scale, ...]
    kept: tuple[Tensor, ...] | None

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """`count` data, as indices if all features are kept, and their classes."""
        index = rows(_count(self.data, self.flip), count, generator)
        if self.kept:
            return moved(index, generator.device), _label(self.data, index, generator.device)
        return _data(self.data, index, generator.device)

    def distances(
        self,
        ends: Tensor,
        label: Tensor | None,
        groups: Sequence[slice],
        real: tuple[Tensor, Tensor | None],
    ) -> Tensor:
        """The energy distances of each group of ends from the `real` data, summed over groups and spaces."""
        drawn, real_label = real
        if self.clip:
            ends = ends.clamp(-1, 1)
        with torch.no_grad():
            features = [f[drawn] for f in self.kept] if self.kept else self.embed(drawn, real_label)
        found = []
        for x, y, scale in zip(self.embed(ends, label), features, self.scales, strict=True):
            for group in groups:
                of_group = None if label is None else label[group]
                found.append(energy(x[group], y, scale, of_group, real_label))
        return torch.stack(found).sum()


@torch.no_grad()
def target_of(embed: Embedding, data: Independent, *, flip: bool, clip: bool, device: torch.device) -> Target:
    """The data, with the distances among some of them, and the features of all if they fit into `KEPT_BYTES`."""
    count = _count(data, flip)
    some = torch.linspace(0, count - 1, min(count, SCALED_BY)).round().long()
    features, label = embedded(embed, data, some, device)
    scales = tuple(scale_of(y, label) for y in features)
    size = sum(y[0].nbytes for y in features) * count
    kept = None
    if size <= KEPT_BYTES:
        kept = tuple(embedded(embed, data, torch.arange(count), device)[0])
    return Target(embed, data, flip, clip, scales, kept)


def embedded(
    embed: Embedding, data: Independent, index: Tensor, device: torch.device
) -> tuple[list[Tensor], Tensor | None]:
    """Features of these rows of the data in each space, and their classes."""
    parts, labels = [], []
    for part in torch.split(index, BATCH):
        x1, label = _data(data, part, device)
        parts.append(embed(x1, label))
        labels.append(label)
    features = [torch.cat(column) for column in zip(*parts, strict=True)]
    return features, None if data.label is None else torch.cat([label for label in labels if label is not None])


def _count(data: Independent, flip: bool) -> int:
    return len(data) * (2 if flip else 1)


def _data(data: Independent, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The data at these indices; indices beyond its end are mirror images."""
    at = moved(index % len(data), data.x1.device)
    x1 = floats(moved(data.x1[at], device))
    mirrored = moved(index >= len(data), device)
    if x1.ndim == 4:
        x1 = torch.where(expand(mirrored, x1), x1.flip(-1), x1)
    return x1, _label(data, index, device)


def _label(data: Independent, index: Tensor, device: torch.device) -> Tensor | None:
    if data.label is None:
        return None
    return moved(data.label[moved(index % len(data), data.label.device)], device)
