"""How good samples are and how straight a flow is.

Frechet distance on features for images, sliced Wasserstein and energy distance for points, straightness and
transport cost for flows. Every estimate comes with a standard error: a delete-a-group jackknife for the
distances (resampling with replacement would bias them), the usual one for means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore import rng

GROUPS = 10


class Estimate(NamedTuple):
    """A value, its standard error, and how many samples it was made of."""

    value: float
    std: float
    samples: int


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
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2).

    Dowson and Landau, "The Frechet distance between multivariate normal distributions" (1982); with Inception
    features it is the FID of Heusel et al. (arXiv:1706.08500). The symmetric root keeps every eigenvalue real.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def frechet_estimate(groups: Sequence[Stats], reference: Stats) -> Estimate:
    """The Frechet distance of all groups together to the reference, with its jackknife standard error.

    Raises:
        ValueError: if there are too few samples for the features: with D dimensions, at least D + 1 per
            leave-one-out sample, or the covariance is singular and the number means nothing.
    """
    whole = groups[0]
    for group in groups[1:]:
        whole = whole + group
    dims, least = len(whole.total), whole.count - max(group.count for group in groups)
    if least <= dims or reference.count <= dims:
        raise ValueError(
            f"a Frechet distance on {dims} features needs more than {dims} samples on each side, "
            f"got {least} generated (one of {len(groups)} groups left out) and {reference.count} real"
        )
    left_out = [frechet_distance(whole - group, reference) for group in groups]
    return Estimate(frechet_distance(whole, reference), jackknife(left_out), whole.count)


def jackknife(left_out: Sequence[float]) -> float:
    """The standard error of a statistic, from its values with one group left out each (Efron and Stein, 1981)."""
    values = torch.tensor(left_out, dtype=torch.float64)
    n = len(values)
    return sqrt((n - 1) / n * float((values - values.mean()).square().sum()))


def group_sizes(count: int) -> list[int]:
    """Sizes of the jackknife groups of `count` samples, in order."""
    groups = min(GROUPS, count)
    return [count // groups + (i < count % groups) for i in range(groups)]


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

    def without(values: Tensor, order: Tensor, group: int) -> Tensor:
        return values[order % GROUPS != group].reshape(directions, -1)

    left_out = [distance(without(a, order_a, g), without(b, order_b, g)) for g in range(GROUPS)]
    return Estimate(distance(a, b), jackknife(left_out), count)


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
    return Estimate(distance(everyone), jackknife(left_out), count)


def straightness(points: Sequence[Float[Tensor, "B *D"]], grid: Float[Tensor, " knots"]) -> Float[Tensor, " B"]:
    """int |(x_1 - x_0) - v(x_t, t)|^2 dt for each trajectory, mean over dimensions; 0 is a straight line.

    Liu et al., arXiv:2209.03003, eq. 4 (they sum over dimensions). `points` is an Euler trajectory on a grid from
    0 to 1, whose differences are the velocities it was made of.
    """
    chord, total = points[-1] - points[0], torch.zeros(len(points[0])).to(points[0])
    for (a, b), h in zip(pairwise(points), grid.diff().tolist(), strict=True):
        total += h * (chord - (b - a) / h).flatten(1).square().mean(1)
    return total


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
