"""What stored pairs look like: is their noise still noise, how far do they travel, are all classes there.

Reflow trains on nothing else, so a fault here (noise of a diverging inversion, a lost class, a swapped tensor)
becomes the model's. It is far cheaper to see it in a table than in samples a day later.
"""

from collections.abc import Iterable, Mapping
from math import prod, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.flow.couplings import Pairs
from fmcore.flow.pixels import floats
from fmcore.score.straightness import transport_cost

FAR = 6.0  # standard errors from what N(0, I) gives, beyond which noise is called suspicious
OUTLYING = 6.0  # robust standard deviations above the median cost, beyond which a pair is an outlier
BINS = 40
# Mean and variance under N(0, I).
EXPECTED = {"mean": (0.0, 1.0), "square": (1.0, 2.0), "fourth": (3.0, 96.0), "neighbours": (0.0, 1.0)}


class Bin(NamedTuple):
    """How many values of `what` lie between two numbers."""

    what: str
    left: float
    right: float
    number: int


class Quality(NamedTuple):
    """What was found: numbers by name, and histograms."""

    numbers: dict[str, float]
    bins: list[Bin]


def pair_quality(batches: Iterable[Pairs], num_classes: int | None = None) -> Quality:
    """Moments of x_0, transport costs |x_1 - x_0|^2 (mean over dimensions) and class shares, in one pass.

    Returns:
        `not_finite`, the number of pairs with a value that is not; `x0_mean` (0 for noise), `x0_square` (1),
        `x0_fourth` (3) and `x0_neighbours` (the mean product of values side by side, 0; absent where there is one
        value only), each as it was found, and as `..._sigmas` in standard errors from what N(0, I) gives; `cost`,
        `cost_05`, `cost_50`, `cost_95`, `cost_max`; `outliers`, the share of pairs whose cost is more than
        `OUTLYING` robust standard deviations above the median; `class_least` and `class_most`, the rarest and
        commonest class's share times the number of classes (1 is balance). Histograms of the cost and of the norm
        |x_0|^2 / D.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    costs: list[Tensor] = []
    norms: list[Tensor] = []
    classes = torch.zeros(num_classes or 0, dtype=torch.int64)
    for x0, x1, label in batches:
        z = x0.double()
        found = {"mean": z, "square": z.square(), "fourth": z**4}
        if z.shape[-1] > 1:
            found["neighbours"] = z[..., 1:] * z[..., :-1]
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value.sum())
            counts[name] = counts.get(name, 0) + prod(value.shape)
        costs.append(transport_cost(z, floats(x1).double()).cpu())
        norms.append(found["square"].flatten(1).mean(1).cpu())
        if label is not None and num_classes:
            classes += label.cpu().bincount(minlength=num_classes)
    cost = torch.cat(costs)
    out = {"not_finite": float((~cost.isfinite()).sum())}
    for name, total in sums.items():
        mean, variance = EXPECTED[name]
        out[f"x0_{name}"] = total / counts[name]
        out[f"x0_{name}_sigmas"] = (total / counts[name] - mean) / sqrt(variance / counts[name])
    out |= quantiles("cost", cost)
    middle = cost.median()
    spread = 1.4826 * (cost - middle).abs().median()  # a Gaussian's standard deviation
    out["outliers"] = float((cost > middle + OUTLYING * spread).double().mean())
    if num_classes and int(classes.sum()):
        shares = classes.double() / classes.sum() * num_classes
        out["class_least"], out["class_most"] = float(shares.min()), float(shares.max())
    return Quality(out, histogram("cost", cost) + histogram("norm", torch.cat(norms)))


def quantiles(name: str, values: Float[Tensor, " N"]) -> dict[str, float]:
    """The mean, some quantiles and the largest of some values, by names that begin with `name`."""
    ordered = values.sort().values
    found = {name: float(values.double().mean())}
    found |= {f"{name}_{q:02d}": float(ordered[round(q / 100 * (len(ordered) - 1))]) for q in (5, 50, 95)}
    return found | {f"{name}_max": float(ordered[-1])}


def histogram(what: str, values: Float[Tensor, " N"]) -> list[Bin]:
    """`BINS` equal bins from the least to the largest finite value."""
    values = values[values.isfinite()].cpu().double()
    counts, edges = torch.histogram(values, BINS)
    lines = zip(edges.tolist(), edges[1:].tolist(), counts.long().tolist(), strict=False)
    return [Bin(what, float(f"{left:.6g}"), float(f"{right:.6g}"), count) for left, right, count in lines]


def suspicions(numbers: Mapping[str, float]) -> list[str]:
    """One line for each way in which x_0 is not N(0, I), or a class is missing."""
    lines = []
    for key, value in numbers.items():
        name = key.removesuffix("_sigmas")
        if name != key and not abs(value) < FAR:
            lines.append(f"{name} is {numbers[name]:.3g}, {value:+.0f} standard errors from that of noise")
    if numbers.get("class_least") == 0:
        lines.append("a class has no pairs")
    return lines
