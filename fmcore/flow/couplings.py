"""Couplings: where pairs (x_0, x_1) come from.

A coupling is called with a count, a generator and the share of the training that is done (0 to 1). `Independent`
pairs each data point with fresh noise, `MinibatchOT` pairs them within a batch at the least squared distance,
`Stored` and `Sharded` return the pairs that an earlier flow induced, and the others change or mix pairs. Reflow is
the same training on another coupling (Liu et al., arXiv:2209.03003).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, pi, prod
from random import Random
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from fmcore.flow import rng
from fmcore.flow.errors import one_line
from fmcore.flow.paths import expand
from fmcore.flow.pixels import floats
from fmcore.flow.speed import moved


class Pairs(NamedTuple):
    """Noise x0 (B, *D), data x1 (B, *D) and, for conditional models, the class of each pair (B,)."""

    x0: Tensor
    x1: Tensor
    label: Tensor | None = None


@runtime_checkable
class Coupling(Protocol):
    """What training asks of a coupling. From a `slow` one it draws in a thread, one step ahead."""

    @property
    def slow(self) -> bool: ...

    def __len__(self) -> int: ...

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs: ...


def rows(length: int, count: int, generator: Generator) -> Int64[Tensor, " count"]:
    """`count` indices below `length`, with replacement; drawn on the CPU for a GPU's generator too.

    So whether the data fit on the GPU does not change which pairs are trained on.
    """
    if generator.device.type != "cpu":
        generator = torch.Generator().manual_seed((generator.initial_seed() + length) % 2**63)
    return torch.randint(length, (count,), generator=generator)


@dataclass(frozen=True)
class Independent:
    """Each data point with noise of its own, drawn anew at every call: q(x_0, x_1) = N(x_0) q(x_1).

    Data may be kept as 8-bit pixels, in a quarter of the memory; training sees float32 either way. Data kept on
    the host because the GPU has no room is `slow`.

    Other arguments:
        source: samples that x_0 is drawn from, with replacement, instead of noise: a flow between two data sets.
    """

    x1: Float[Tensor, "N *D"] | UInt8[Tensor, "N *D"]
    label: Int64[Tensor, " N"] | None = None
    slow: bool = False
    source: Float[Tensor, "M *D"] | None = None

    def __post_init__(self) -> None:
        for name, x in (("x1", self.x1), ("source", self.source)):
            if x is not None and not (x.is_floating_point() or x.dtype == torch.uint8):
                raise TypeError(
                    f"{name}: expected floats, or 8-bit pixels as torch.uint8, got {x.dtype}; if these are pixels "
                    "from 0 to 255: x.to(torch.uint8)"
                )
        if self.source is not None and self.source.shape[1:] != self.x1.shape[1:]:
            there = tuple(self.x1.shape[1:])
            raise ValueError(f"source: expected samples of shape {there}, got {tuple(self.source.shape[1:])}")

    def __len__(self) -> int:
        return len(self.x1)

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        index = moved(rows(len(self), count, generator), self.x1.device)
        x1 = floats(moved(self.x1[index], generator.device))
        if self.source is None:
            x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
        else:
            # On a GPU `rows` leaves the generator where it is: one source as long as the data would be in step.
            own = rng.generator(generator.initial_seed(), "source")
            drawn = moved(rows(len(self.source), count, own), self.source.device)
            x0 = floats(moved(self.source[drawn], generator.device))
        return Pairs(x0, x1, None if self.label is None else moved(self.label[index], generator.device))


@dataclass(frozen=True)
class Indexed:
    """As `Independent`, of the items of a torch Dataset, x, (x,) or (x, label), read when they are drawn."""

    items: Any
    slow = True

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        read = [self.items[i] for i in rows(len(self), count, generator).tolist()]
        inside = isinstance(read[0], list | tuple)
        try:
            x1 = torch.stack([torch.as_tensor(item[0] if inside else item) for item in read])
            label = torch.tensor([int(item[1]) for item in read]) if inside and len(read[0]) > 1 else None
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            reason = one_line(error)
            raise TypeError(f"items: expected tensors x or pairs (x, label) of equal shapes: {reason}") from None
        x1 = floats(moved(x1, generator.device))
        x0 = torch.randn(x1.shape, generator=generator, device=x1.device)
        return Pairs(x0, x1, None if label is None else moved(label, generator.device))


@dataclass(frozen=True)
class Stored:
    """Pairs made beforehand, on the device that trains; `fmcore.disk.pairs.open_pairs` reads them from disk."""

    pairs: Pairs
    slow = False

    def __len__(self) -> int:
        return len(self.pairs.x0)

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        x0, x1, label = self.pairs
        index = moved(rows(len(self), count, generator), x0.device)
        # Pairs may be kept in half precision, samples as pixels; the path and the loss are computed in float32.
        return Pairs(x0[index].float(), floats(x1[index]), None if label is None else label[index])


@dataclass(frozen=True)
class Sharded:
    """Stored pairs in parts that stay in memory-mapped files; only the pairs drawn are read.

    It draws the pairs that `Stored` of all parts joined would draw. `rows` limits it to these indices.
    """

    parts: tuple[Pairs, ...]
    rows: Int64[Tensor, " N"] | None = None
    slow = True

    def __len__(self) -> int:
        return sum(len(part.x0) for part in self.parts) if self.rows is None else len(self.rows)

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        x0, x1, label = (
            None if column is None else moved(column, generator.device)
            for column in self.at(rows(len(self), count, generator))
        )
        assert x0 is not None
        assert x1 is not None
        return Pairs(x0.float(), floats(x1), label)

    def at(self, index: Int64[Tensor, " count"]) -> Pairs:
        """The pairs at these indices (into `rows`, if given), in the types they are stored in."""
        if self.rows is not None:
            index = self.rows[index]
        stops = torch.tensor([len(part.x0) for part in self.parts]).cumsum(0)
        starts = [0, *stops.tolist()]
        which = torch.searchsorted(stops, index, right=True).tolist()
        places = [(k, i - starts[k]) for k, i in zip(which, index.tolist(), strict=True)]

        def found(column: Sequence[Tensor]) -> Tensor:
            return torch.stack([column[k][i] for k, i in places])

        labels = [part.label for part in self.parts if part.label is not None]
        x0, x1 = found([part.x0 for part in self.parts]), found([part.x1 for part in self.parts])
        return Pairs(x0, x1, found(labels) if labels else None)


@dataclass(frozen=True)
class MinibatchOT:
    """Fresh noise and data, paired within each batch at the least total squared distance.

    Tong et al. (arXiv:2302.00482), section 3.2; Pooladian et al. (arXiv:2304.14772). Between equally many equally
    likely points an optimal plan is a permutation (Birkhoff). So the assignment problem is solved, and each noise
    and each image, with its label, is used once; drawing from the plan would repeat some. With labels, noise is
    permuted within each class only. Otherwise a class would be trained on the noise near it alone, while a
    conditional sampler starts from all of N(0, I) (Cheng and Schwing, arXiv:2503.10636).
    """

    fresh: Independent
    slow = True

    def __post_init__(self) -> None:
        if not isinstance(self.fresh, Independent):
            raise ValueError(
                f"minibatch OT needs fresh noise, got pairs already made: {type(self.fresh).__name__}"
            )

    def __len__(self) -> int:
        return len(self.fresh)

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        x0, x1, label = self.fresh(count, generator, progress)
        simplex = prod(x1.shape[1:]) < MANY_DIMENSIONS and count >= LARGE_BATCH
        order = (_by_simplex if simplex else _by_assignment)(x0.flatten(1), x1.flatten(1), label)
        return Pairs(x0[moved(order, x0.device)], x1, label)


# In few dimensions shortest augmenting paths are long, and the network simplex is several times as fast; in many
# it is the slower one (docs/LOG.md).
MANY_DIMENSIONS, LARGE_BATCH = 16, 128
PIVOTS = 10**8


def _by_assignment(x0: Tensor, x1: Tensor, label: Tensor | None) -> Int64[Tensor, " count"]:
    """For each x1 its x0, by shortest augmenting paths (Jonker and Volgenant, 1987)."""
    from lap import lapjvx

    # |a - b|^2 up to terms that no permutation changes.
    cost = -(x1 @ x0.T)
    if label is not None:
        cost.masked_fill_(label[:, None] != label, torch.inf)
    _, order = lapjvx(cost.cpu().numpy(), return_cost=False)
    return torch.from_numpy(order).long()


def _by_simplex(x0: Tensor, x1: Tensor, label: Tensor | None) -> Int64[Tensor, " count"]:
    """For each x1 its x0, by the network simplex, class by class."""
    import ot

    a, b = x1.cpu().double(), x0.cpu().double()
    classes = torch.zeros(len(a), dtype=torch.int64) if label is None else label.cpu()
    order = torch.empty(len(a), dtype=torch.int64)
    for one in sorted(set(classes.tolist())):
        (rows_of,) = torch.where(classes == one)
        cost = (a[rows_of, None] - b[None, rows_of]).square().sum(2)
        even = np.full(len(rows_of), 1 / len(rows_of))
        plan = ot.emd(even, even, cost.numpy(), numItermax=PIVOTS, center_dual=False, check_marginals=False)
        found = torch.from_numpy(plan).argmax(1)
        if len(set(found.tolist())) < len(found):  # an optimum between permutations: several are as good
            found = _by_assignment(b[rows_of], a[rows_of], None)
        order[rows_of] = rows_of[found]
    return order


# Couplings of data with fresh noise, by their names in params.yaml.
COUPLINGS: dict[str, Callable[[Independent], Coupling]] = {
    "independent": lambda fresh: fresh,
    "minibatch_ot": MinibatchOT,
}


@dataclass(frozen=True)
class Mixture:
    """Each batch in shares from several couplings; once the share `until` of training is done, the first alone.

    If the second part holds real images and the noise they are carried to, this is the real-data anchoring of Lee
    et al. (arXiv:2405.20320, section 4.3) and Seong et al. ("conic reflow", arXiv:2510.25229).
    """

    parts: tuple[Coupling, ...]
    shares: tuple[float, ...]
    until: float = 1.0

    def __post_init__(self) -> None:
        fair = len(self.parts) == len(self.shares) and all(share >= 0 for share in self.shares)
        if not fair or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"a mixture of {len(self.parts)} needs shares that sum to 1, got {list(self.shares)}")
        if not 0 < self.until <= 1:
            raise ValueError(f"a mixture needs until in (0, 1], got {self.until}")

    @property
    def slow(self) -> bool:
        return any(part.slow for part in self.parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        # Systematic sampling: whole numbers that are right on average, drawn without waiting for the device. The
        # length in the seed gives a mixture inside a mixture, which is shorter, another offset.
        offset, at, counts = Random(f"{generator.initial_seed()} {len(self)}").random(), 0.0, []
        for share in self.shares if progress < self.until else (1.0, *[0.0] * (len(self.parts) - 1)):
            counts.append(floor((at + share) * count + offset) - floor(at * count + offset))
            at += share
        counts[0] += count - sum(counts)  # 0, but for rounding
        drawn = [part(n, generator, progress) for part, n in zip(self.parts, counts, strict=True) if n]
        labels = [pairs.label for pairs in drawn if pairs.label is not None]
        if labels and len(labels) < len(drawn):
            raise ValueError("a mixture needs labels in all of its parts or in none")
        x0, x1 = (torch.cat(column) for column in list(zip(*drawn, strict=True))[:2])
        return Pairs(x0, x1, torch.cat(labels) if labels else None)


@dataclass(frozen=True)
class _Changed:
    """What couplings that change another's pairs have in common."""

    inner: Coupling

    @property
    def slow(self) -> bool:
        return self.inner.slow

    def __len__(self) -> int:
        return len(self.inner)


@dataclass(frozen=True)
class Slerped(_Changed):
    """Turns each x_0 towards fresh noise by an angle uniform in [0, most * pi / 2].

    x_0 cos + fresh sin is N(0, I) again in any dimension. In high dimensions fresh noise is nearly orthogonal to
    x_0, so this is the slerp of conic reflow (arXiv:2510.25229, with most = 0.13).
    """

    most: float

    def __post_init__(self) -> None:
        if not 0 <= self.most <= 1:
            raise ValueError(f"slerp needs most in [0, 1], got {self.most}")

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        x0, x1, label = self.inner(count, generator, progress)
        fresh = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        share = torch.rand(len(x0), generator=generator, device=x0.device, dtype=x0.dtype)
        angle = expand(share * self.most * (pi / 2), x0)
        return Pairs(angle.cos() * x0 + angle.sin() * fresh, x1, label)


@dataclass(frozen=True)
class Flipped(_Changed):
    """Mirrors each pair left to right with probability 1/2, noise and image together.

    A mirrored stored pair is one of its teacher's pairs only if the teacher commutes with mirroring. A teacher
    trained with flips learns to.
    """

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        x0, x1, label = self.inner(count, generator, progress)
        coin = expand(torch.rand(count, generator=generator, device=x0.device) < 0.5, x0)
        return Pairs(torch.where(coin, x0.flip(-1), x0), torch.where(coin, x1.flip(-1), x1), label)


@dataclass(frozen=True)
class LabelDropout(_Changed):
    """Replaces each sample's label by `null_label` with probability `p`, for guidance (arXiv:2207.12598)."""

    p: float
    null_label: int

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"label dropout needs p in [0, 1], got {self.p}")

    def __call__(self, count: int, generator: Generator, progress: float = 0.0) -> Pairs:
        x0, x1, label = self.inner(count, generator, progress)
        if label is None:
            raise ValueError("label dropout needs labels, got none")
        dropped = torch.rand(count, generator=generator, device=label.device) < self.p
        return Pairs(x0, x1, torch.where(dropped, self.null_label, label))


def joined(parts: Sequence[Pairs], device: torch.device | str = "cpu") -> Pairs:
    """All pairs of the parts, on a device."""
    x0, x1 = (torch.cat(column).to(device) for column in list(zip(*parts, strict=True))[:2])
    labels = [part.label for part in parts if part.label is not None]
    return Pairs(x0, x1, torch.cat(labels).to(device) if labels else None)


def without_longest(coupling: Stored | Sharded, share: float) -> Stored | Sharded:
    """The pairs without the `share` that have the largest |x_1 - x_0|, in the same order (arXiv:2511.23342)."""
    if not 0 <= share < 1:
        raise ValueError(f"expected a share in [0, 1), got {share}")
    if not share:
        return coupling
    costs = []
    for part in (coupling.pairs,) if isinstance(coupling, Stored) else coupling.parts:
        # In blocks: all pairs as float32 at once might not fit into memory.
        for a, b in zip(torch.split(part.x0, 4096), torch.split(part.x1, 4096), strict=True):
            costs.append((floats(b) - a.float()).flatten(1).square().sum(1))
    cost = torch.cat(costs)
    keep = cost.argsort(stable=True)[: len(cost) - round(share * len(cost))].sort().values
    if isinstance(coupling, Sharded):
        return Sharded(coupling.parts, keep)
    x0, x1, label = coupling.pairs
    return Stored(Pairs(x0[keep], x1[keep], None if label is None else label[keep]))
