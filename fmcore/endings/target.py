"""The data that a student's ends are matched to, in the spaces where they are compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fmcore.endings.spaces import BATCH, Embedding, Scale, energy, scale_of
from fmcore.flow.couplings import Independent, rows
from fmcore.flow.paths import expand
from fmcore.flow.pixels import floats
from fmcore.flow.speed import moved

KEPT_BYTES = 2**30  # most memory for the data's features; a constant, so that a resumed run does the same
SCALED_BY = 4096  # most rows of data that scales are measured on


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
