"""How good samples are and how straight a flow is.

Frechet distance on features for images, sliced Wasserstein and energy distance for points, straightness and
transport cost for flows. Every estimate comes with a standard error: a delete-a-group jackknife for the
distances (resampling with replacement would bias them), the usual one for means.

A sample's group follows from its index alone. Models that start from one noise thus have it in the same groups,
and the error of a difference between two of them is made of the ten differences: what the noise does to both
cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, nan, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore import rng

GROUPS = 10


class Estimate(NamedTuple):
    """A value, its standard error, and how many samples it was made of.

    `left_out` holds the value with one of `GROUPS` groups of samples left out each; nothing
    where the error is not a jackknife's.
    """

    value: float
    std: float
    samples: int
    left_out: tuple[float, ...] = ()


@dataclass(frozen=True)
class Stats:
    """Count, sum and sum of outer products of features, in float64: all a Frechet distance needs.

    They add: `stats(a) + stats(b)` are the statistics of a and b together.
    """

    count: int
    total: Float[Tensor, " D"]
    outer: Float[Tensor, "D D"]

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: "Stats") -> "Stats":
        return Stats(self.count - other.count, self.total - other.total, self.outer - other.outer)

    def to(self, device: torch.device | str) -> "Stats":
        """The same on that device."""
        return Stats(self.count, self.total.to(device), self.outer.to(device))

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """Mean of the features."""
        return self.total / self.count

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """Unbiased covariance of the features."""
        mean = self.mean
        return (self.outer - self.count * mean.outer(mean)) / (self.count - 1)


def stats(features: Float[Tensor, "N D"]) -> Stats:
    """The statistics of some features."""
    f = features.double()
    return Stats(len(f), f.sum(0), f.T @ f)


def frechet_distance(a: Stats, b: Stats) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_b^1/2 S_a S_b^1/2)^1/2).

    Dowson and Landau, "The Frechet distance between multivariate normal distributions" (1982); with Inception
    features it is the FID of Heusel et al. (arXiv:1706.08500). The symmetric root keeps every eigenvalue real.
    """
    return _frechet(a, b, _root(b.covariance))


def _root(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _frechet(a: Stats, b: Stats, root: Float[Tensor, "D D"]) -> float:
    """The distance, given the root of b's covariance."""
    spread = a.covariance
    cross = torch.linalg.eigvalsh(root @ spread @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + spread.trace() + b.covariance.trace() - 2 * cross)


def _whole(groups: Sequence[Stats]) -> Stats:
    total = groups[0]
    for group in groups[1:]:
        total = total + group
    return total


def frechet_estimate(groups: Sequence[Stats], reference: Stats) -> Estimate:
    """The Frechet distance of all groups together to the reference, with its jackknife standard error.

    The error is that of the samples drawn. The distance is too large on average, by about c (1/n + 1/m) for n
    samples and a reference of m (see `frechet_floor`), which no error covers.

    Raises:
        ValueError: if there are too few samples for the features: with D dimensions, at least D + 1 per
            leave-one-out sample, or the covariance is singular and the number means nothing.
    """
    whole = _whole(groups)
    dims, least = len(whole.total), whole.count - max(group.count for group in groups)
    if least <= dims or reference.count <= dims:
        raise ValueError(
            f"a Frechet distance on {dims} features needs more than {dims} samples on each side, "
            f"got {least} generated (one of {len(groups)} groups left out) and {reference.count} real"
        )
    root = _root(reference.covariance)
    left_out = [_frechet(whole - group, reference, root) for group in groups]
    return Estimate(_frechet(whole, reference, root), jackknife(left_out), whole.count, tuple(left_out))


def frechet_infinity(groups: Sequence[Stats], reference: Stats) -> Estimate:
    """The Frechet distance that infinitely many samples would have to the same reference.

    Chong and Forsyth (arXiv:1911.07023) extrapolate along a line in 1 / n; the jackknife does so from all samples
    and all but a tenth of them. What n adds is gone but for (D / n)^2 of it; what the size of the reference adds
    is still there. Errors as for `frechet_estimate`.
    """
    return bias_corrected(frechet_estimate(groups, reference), [group.count for group in groups])


def bias_corrected(plain: Estimate, sizes: Sequence[int]) -> Estimate:
    """An estimate whose bias goes as 1 / n, without it; `sizes` are those of the groups left out.

    Quenouille's jackknife, G theta - sum_g (1 - n_g / n) theta_g, for groups of different sizes (Busing, Meijer
    and van der Leeden, "Delete-m jackknife for unequal m", 1999). Its pseudo-values differ from each other as the
    plain ones do, and so it has the plain error.
    """
    n, groups = sum(sizes), len(sizes)
    parts = [(1 - size / n) * value for size, value in zip(sizes, plain.left_out, strict=True)]
    value = groups * plain.value - sum(parts)
    shift = value - sum(plain.left_out) / groups
    return plain._replace(value=value, left_out=tuple(v + shift for v in plain.left_out))


def frechet_floor(parts: Sequence[Stats]) -> Estimate:
    """The c of c (1/n + 1/m): the mean score of n fresh samples of the data's own distribution against m of it.

    `parts` are the statistics of the data, dealt at random into equal parts, a power of two of them. The value is
    the mean over splits of them into two halves of the distance between the halves, over 1/n + 1/m: right where
    the halves hold far more samples than there are dimensions.

    To first order a split's distance is a quadratic form of its sum of parts with signs. The splits taken are the
    rows of a Hadamard matrix, whose sums are independent; hence the error.

    Raises:
        ValueError: if the number of parts is no power of two from 4 on, or halves have too few samples.
    """
    whole, dims, count = _whole(parts), len(parts[0].total), len(parts)
    if count < 4 or count & (count - 1):
        raise ValueError(f"the floor of a Frechet distance needs 4, 8, 16, ... parts, got {count}")
    found = []
    for row in range(1, count):
        half = _whole([part for i, part in enumerate(parts) if (i & row).bit_count() % 2])
        rest = whole - half
        if min(half.count, rest.count) <= dims:
            raise ValueError(
                f"the floor of a Frechet distance on {dims} features needs more than {2 * dims} samples, "
                f"got {whole.count}"
            )
        found.append(frechet_distance(half, rest) / (1 / half.count + 1 / rest.count))
    return mean_estimate(torch.tensor(found, dtype=torch.float64))._replace(samples=whole.count)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b, of two models scored on one noise.

    The error is a jackknife's of the differences, which is far smaller than those of a and b where these move
    together. If they have no groups in common (other numbers of samples or repeats, or no jackknife), the errors
    add as those of independent values do.
    """
    value, samples = a.value - b.value, min(a.samples, b.samples)
    if not a.left_out or len(a.left_out) != len(b.left_out) or a.samples != b.samples:
        return Estimate(value, hypot(a.std, b.std), samples)
    left_out = [x - y for x, y in zip(a.left_out, b.left_out, strict=True)]
    return Estimate(value, jackknife(left_out), samples, tuple(left_out))


def pooled(estimates: Sequence[Estimate]) -> tuple[Estimate, float]:
    """The mean of repeats on disjoint noise with its standard error, and the standard deviation between them.

    The standard deviation is nan for one repeat. `samples` is that of a repeat. `left_out` holds the mean without
    group g of every repeat and, for distances that leave out a group of the reference too, of that: all repeats
    share the reference, so its chance does not average out. Where there are no such values the error is that of a
    single repeat, which is an upper bound.
    """
    repeats, mean = len(estimates), sum(e.value for e in estimates) / len(estimates)
    std = sqrt(sum(e.std**2 for e in estimates) / repeats)
    left_out: tuple[float, ...] = ()
    if all(len(e.left_out) == GROUPS for e in estimates):
        left_out = tuple(sum(values) / repeats for values in zip(*(e.left_out for e in estimates), strict=True))
        std = jackknife(left_out)
    spread = sqrt(sum((e.value - mean) ** 2 for e in estimates) / (repeats - 1)) if repeats > 1 else nan
    return Estimate(mean, std, estimates[0].samples, left_out), spread


def jackknife(left_out: Sequence[float]) -> float:
    """The standard error of a statistic, from its values with one group left out each (Efron and Stein, 1981)."""
    values = torch.tensor(left_out, dtype=torch.float64)
    n = len(values)
    return sqrt((n - 1) / n * float((values - values.mean()).square().sum()))


def group_sizes(count: int) -> list[int]:
    """Sizes of the jackknife groups of `count` samples, in order."""
    groups = min(GROUPS, count)
    return [b - a for a, b in pairwise(i * count // groups for i in range(groups + 1))]


def sliced_wasserstein(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], *, directions: int = 256) -> Estimate:
    """Sliced 2-Wasserstein distance: root mean over directions of the squared 1-D distance.

    Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures" (2015). The directions are fixed, so
    values compare across models. The larger set is cut to the size of the smaller.
    """
    count = min(len(x), len(y))
    count -= count % GROUPS
    if not count:
        raise ValueError(f"sliced Wasserstein needs at least {GROUPS} samples, got {len(x)} and {len(y)}")
    g = rng.generator(0, "sliced-wasserstein/directions")
    theta = torch.nn.functional.normalize(torch.randn(directions, x.shape[1], generator=g), dim=1).double()
    a, order_a = (theta @ x[:count].double().T).sort(dim=1)
    b, order_b = (theta @ y[:count].double().T).sort(dim=1)

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean().sqrt())

    group_a, group_b = (order % GROUPS for order in (order_a, order_b))

    def without(values: Tensor, groups: Tensor, group: int) -> Tensor:
        kept = values.numpy()[groups.numpy() != group]  # several times as fast as a mask in torch
        return torch.from_numpy(kept).reshape(directions, -1)

    left_out = [distance(without(a, group_a, g), without(b, group_b, g)) for g in range(GROUPS)]
    return Estimate(distance(a, b), jackknife(left_out), count, tuple(left_out))


def energy_distance(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], *, at_most: int = 4000) -> Estimate:
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased, on the first `at_most` samples of each.

    Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
    """
    count = min(len(x), len(y), at_most)
    count -= count % GROUPS
    if count < 2 * GROUPS:
        raise ValueError(f"energy distance needs at least {2 * GROUPS} samples, got {len(x)} and {len(y)}")
    x, y = x[:count], y[:count]

    def blocks(a: Tensor, b: Tensor) -> Tensor:
        side = count // GROUPS
        return torch.cdist(a, b).double().reshape(GROUPS, side, GROUPS, side).sum((1, 3))

    xy, xx, yy = blocks(x, y), blocks(x, x), blocks(y, y)

    def distance(keep: Tensor) -> float:
        n = count // GROUPS * int(keep.sum())
        cross, same = ((m[keep][:, keep]).sum() for m in (xy, xx + yy))
        return float(2 * cross / n**2 - same / (n * (n - 1)))

    everyone = torch.ones(GROUPS, dtype=torch.bool)
    left_out = []
    for group in range(GROUPS):
        keep = everyone.clone()
        keep[group] = False
        left_out.append(distance(keep))
    return Estimate(distance(everyone), jackknife(left_out), count, tuple(left_out))


def bends(points: Sequence[Float[Tensor, "B *D"]], grid: Float[Tensor, " knots"]) -> Float[Tensor, "steps B"]:
    """|(x_1 - x_0) - v(x_t, t)|^2 on each interval of the grid for each trajectory, mean over dimensions.

    `points` is an Euler trajectory on a grid from 0 to 1, whose differences are the velocities it was made of.
    """
    chord = points[-1] - points[0]
    steps = zip(pairwise(points), grid.diff().tolist(), strict=True)
    return torch.stack([(chord - (b - a) / h).flatten(1).square().mean(1) for (a, b), h in steps])


def straightness(points: Sequence[Float[Tensor, "B *D"]], grid: Float[Tensor, " knots"]) -> Float[Tensor, " B"]:
    """The integral of `bends` over t for each trajectory; 0 is a straight line.

    Liu et al., arXiv:2209.03003, eq. 4 (they sum over dimensions).
    """
    bent = bends(points, grid)
    return grid.diff().to(bent) @ bent


def transport_cost(x0: Float[Tensor, "B *D"], x1: Float[Tensor, "B *D"]) -> Float[Tensor, " B"]:
    """|x_1 - x_0|^2 for each pair, mean over dimensions."""
    return (x1 - x0).flatten(1).square().mean(1)


def mean_estimate(values: Float[Tensor, " N"]) -> Estimate:
    """A mean with its standard error."""
    v = values.double()
    return Estimate(float(v.mean()), float(v.std()) / sqrt(len(v)) if len(v) > 1 else 0.0, len(v))


PointMetric = Callable[[Tensor, Tensor], Estimate]
POINT_METRICS: dict[str, PointMetric] = {
    "sliced_wasserstein": sliced_wasserstein,
    "energy_distance": energy_distance,
}
