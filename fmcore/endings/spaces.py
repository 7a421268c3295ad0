"""Spaces in which a model's samples are compared with data, and the energy distance there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.models.folder import Trained
from fmcore.models.hidden import activations, taps

TIMES = (0.9, 0.7, 0.6, 0.4, 0.2)  # times at which `auto` looks at a block's activations
BATCH = 1024  # inputs at a time; the same in every run, since the last bits depend on it

Features = Float[Tensor, "B F"]
Labelled = tuple[Tensor, Tensor | None]  # samples and their classes, if there are any
Embedding = Callable[[Tensor, Tensor | None], list[Tensor]]  # samples and their classes to features in each space


@dataclass(frozen=True)
class Pixels:
    """The samples themselves."""

    name: Literal["pixels"] = "pixels"


@dataclass(frozen=True)
class Hidden:
    """An activation of the frozen base, whose input is t x at time t: data without noise.

    Main arguments:
        block: as `fmcore.models.hidden.taps` names it.
        t: the time told to the base, and the factor of x; in (0, 1].
        pooled: whether the activations of a U-Net are averaged over positions.
    """

    block: str
    t: float
    pooled: bool = False
    name: Literal["hidden"] = "hidden"

    def __post_init__(self) -> None:
        if not 0 < self.t <= 1:
            raise ValueError(f"hidden needs t in (0, 1], got {self.t}")


Space = Pixels | Hidden
SPACES = {kind.name: kind for kind in get_args(Space)}


def embedding(spaces: Sequence[Space], base: Trained, precision: str = "auto") -> Embedding:
    """The map of samples to their features in each space, by one pass of the frozen base for each time.

    Raises:
        ValueError: if the base does not offer a block.
    """
    offered = taps(base.network)
    for space in spaces:
        if isinstance(space, Hidden) and space.block not in offered:
            raise ValueError(f"unknown block {space.block!r}: expected one of {', '.join(offered) or 'none'}")
    field = base.field(precision)

    def embed(x: Tensor, label: Tensor | None) -> list[Tensor]:
        label = _known_to(base, x, label)
        found: dict[Space, Tensor] = {Pixels(): x.flatten(1)}
        for t in dict.fromkeys(space.t for space in spaces if isinstance(space, Hidden)):
            here = [space for space in spaces if isinstance(space, Hidden) and space.t == t]
            times = x.new_full((len(x),), t)
            names = list(dict.fromkeys(space.block for space in here))
            values = activations(base.network, names, partial(field, t * x, times, label))
            found |= {space: _flat(values[space.block].float(), space.pooled) for space in here}
        return [found[space] for space in spaces]

    return embed


def _known_to(base: Trained, x: Tensor, label: Tensor | None) -> Tensor | None:
    """The classes that the base is told: the given ones, else the null label; None for an unconditional base."""
    if base.num_classes is None or label is not None:
        return None if base.num_classes is None else label
    if base.null_label is None:
        raise ValueError("the base needs classes: expected some, or a base that was trained with label dropout")
    return torch.full((len(x),), base.null_label, device=x.device)


class Choice(NamedTuple):
    """The spaces that `chosen` takes, and the energy distance in each space that it looked at."""

    spaces: tuple[Hidden, Hidden]
    energies: dict[Hidden, float]


@torch.no_grad()
def chosen(base: Trained, ends: Labelled, data: Labelled, precision: str = "auto") -> Choice:
    """The two spaces that tell a student's ends from data best, by the energy distance.

    `auto` finds the block and time of the largest distance. A block without positions is taken there and at two
    thirds of that time. A block with positions is taken at two thirds alone, as it is and averaged over its
    positions: at the time itself it sees fine noise, which made students worse (docs/LOG.md).

    Raises:
        ValueError: if the base offers no activations.
    """
    blocks = taps(base.network)
    if not blocks:
        raise ValueError(f"a {base.network_config.name} offers no activations: name the spaces, e.g. pixels")
    found: dict[Hidden, float] = {}
    for space in (Hidden(block, t) for block in blocks for t in TIMES):  # together they might not fit into memory
        embed = embedding([space], base, precision)
        x, y = (torch.cat([embed(*part)[0] for part in _batches(*rows)]) for rows in (ends, data))
        found[space] = float(energy(x, y, scale_of(y, None)))
    best = max(found, key=lambda space: found[space])
    earlier = replace(best, t=round(best.t * 2 / 3, 3))
    pair = (earlier, replace(earlier, pooled=True)) if blocks[best.block].has_positions else (best, earlier)
    return Choice(pair, found)


def _batches(x: Tensor, label: Tensor | None) -> Iterator[Labelled]:
    for first in range(0, len(x), BATCH):
        part = slice(first, first + BATCH)
        yield x[part], None if label is None else label[part]


def _flat(h: Tensor, pooled: bool) -> Features:
    return h.flatten(2).mean(2) if pooled and h.ndim > 2 else h.flatten(1)


class Scale(NamedTuple):
    """The data's own distances in a space: the `mean` between two of them, and what another class adds."""

    mean: float
    class_cost: float


def pairwise_distances(
    a: Float[Tensor, "A F"],
    b: Float[Tensor, "B F"],
    a_label: Tensor | None,
    b_label: Tensor | None,
    class_cost: float,
) -> Tensor:
    """Distances between all rows, (A, B); if their classes differ, `class_cost`^2 is added to |a - b|^2."""
    lengths = torch.cdist(a, b)
    if a_label is None or b_label is None:
        return lengths
    other = class_cost**2 * (a_label[:, None] != b_label)
    return (lengths.square() + other + 1e-12).sqrt()  # a root's slope is infinite at 0


def mean_pairwise_distance(a: Features, label: Tensor | None, class_cost: float) -> Float[Tensor, ""]:
    """The mean distance between two different rows; a ValueError for fewer than two."""
    if len(a) < 2:
        raise ValueError(
            f"an energy distance needs at least 2 samples, got {len(a)}: raise batch_size or lower accumulate"
        )
    lengths = pairwise_distances(a, a, label, label, class_cost)
    return (lengths.sum() - lengths.diagonal().sum()) / (len(a) * (len(a) - 1))


def scale_of(y: Features, label: Int64[Tensor, " N"] | None) -> Scale:
    """The scale of a space from features of data; another class costs the mean distance between two samples."""
    plain = float(mean_pairwise_distance(y, None, 0.0))
    return Scale(plain if label is None else float(mean_pairwise_distance(y, label, plain)), plain)


def energy(
    x: Float[Tensor, "B F"],
    y: Float[Tensor, "N F"],
    scale: Scale,
    x_label: Int64[Tensor, " B"] | None = None,
    y_label: Int64[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """The energy distance (2 E|x - y| - E|x - x'| - E|y - y'|) / E|y - y'| of samples x from data y, unbiased.

    It is 0 only where x is distributed as y (Szekely and Rizzo, "Energy statistics", 2013; as the loss of a
    generator: Bellemare et al., arXiv:1705.10743). E|y - y'| is `scale.mean`, a constant. With labels it compares
    the joint distributions of samples and labels.
    """
    to_data = pairwise_distances(x, y, x_label, y_label, scale.class_cost).mean()
    return (2 * to_data - mean_pairwise_distance(x, x_label, scale.class_cost)) / scale.mean - 1
