"""Values with standard errors, and how they are made, pooled and subtracted.

The error of a distance is a delete-a-group jackknife's (resampling with replacement would bias it), that of a mean
is s / sqrt(n). A sample's group follows from its index alone. So two models that start from the same noise have it
in the same groups, and the error of their difference is made of the ten differences: what the noise does to both
cancels.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import hypot, nan, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

GROUPS = 10


class Estimate(NamedTuple):
    """A value, its standard error, and how many samples it was made of.

    `left_out` holds `GROUPS` values, each with another group of samples left out; it is empty where the error is
    not a jackknife's.
    """

    value: float
    std: float
    samples: int
    left_out: tuple[float, ...] = ()


def bias_corrected(plain: Estimate, sizes: Sequence[int]) -> Estimate:
    """The estimate without its bias of order 1 / n; `sizes` are those of the groups left out.

    Quenouille's jackknife, G theta - sum_g (1 - n_g / n) theta_g, for groups of different sizes (Busing, Meijer
    and van der Leeden, "Delete-m jackknife for unequal m", 1999). It shifts all values in `left_out` alike, so the
    error stays that of the plain estimate.
    """
    n, groups = sum(sizes), len(sizes)
    parts = [(1 - size / n) * value for size, value in zip(sizes, plain.left_out, strict=True)]
    value = groups * plain.value - sum(parts)
    shift = value - sum(plain.left_out) / groups
    return plain._replace(value=value, left_out=tuple(v + shift for v in plain.left_out))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b, of two models scored on one noise.

    The error is the jackknife's of the differences, which is far smaller than those of a and b where a and b vary
    together. If they have no groups in common (other numbers of samples or repeats, or no jackknife), the errors
    add as those of independent values do.
    """
    value, samples = a.value - b.value, min(a.samples, b.samples)
    if not a.left_out or len(a.left_out) != len(b.left_out) or a.samples != b.samples:
        return Estimate(value, hypot(a.std, b.std), samples)
    left_out = [x - y for x, y in zip(a.left_out, b.left_out, strict=True)]
    return Estimate(value, jackknife(left_out), samples, tuple(left_out))


def pooled(estimates: Sequence[Estimate]) -> tuple[Estimate, float]:
    """The mean of repeats on disjoint noise with its standard error, and the standard deviation of the repeats.

    `samples` is that of one repeat. One repeat has the standard deviation nan.

    Value g in `left_out` is the mean of the repeats' values g, and the standard error is the jackknife's of these
    means. All repeats share the reference, so its chance does not average out. A distance leaves out a group of
    the reference with each group of samples, so this error counts the chance of the reference in full. Repeats
    without `left_out` get the root mean square of their own errors, which is an upper bound.
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


def mean_estimate(values: Float[Tensor, " N"]) -> Estimate:
    """A mean with its standard error."""
    v = values.double()
    return Estimate(float(v.mean()), float(v.std()) / sqrt(len(v)) if len(v) > 1 else 0.0, len(v))
