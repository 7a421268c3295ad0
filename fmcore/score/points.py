"""Distances between sets of points: sliced Wasserstein, energy distance, maximum mean discrepancy."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.flow import rng
from fmcore.score.estimates import GROUPS, Estimate, jackknife


def sliced_wasserstein(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], *, directions: int = 256) -> Estimate:
    """Sliced 2-Wasserstein distance: root mean over directions of the squared 1-D distance.

    Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures" (2015). The directions are fixed, so
    values compare across models. Both sets are cut to one size, a multiple of `GROUPS`.
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
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased, on equally many of each: `at_most`, or the smaller set's size.

    Szekely and Rizzo, "Energy statistics: a class of statistics based on distances" (2013).
    """
    x, y = centred(x, y)
    return _two_samples(x, y, lambda a, b: -torch.cdist(a, b), at_most, "energy distance")


def mmd(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], *, at_most: int = 4000) -> Estimate:
    """Squared maximum mean discrepancy, unbiased, with a Gaussian kernel as wide as the median distance within y.

    Gretton et al., "A kernel two-sample test" (2012), equation 3. On equally many of each, as `energy_distance`.
    """
    x, y = centred(x, y)
    width = torch.pdist(y[:1000]).median().clamp_min(1e-12)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        found = (-((torch.cdist(a, b) / width) ** 2) / 2).exp()
        return found.fill_diagonal_(0) if a is b else found

    return _two_samples(x, y, kernel, at_most, "mmd")


def centred(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> tuple[Tensor, Tensor]:
    """Both without y's mean, since `torch.cdist` loses digits far from the origin: 0.046 for 0.078 at 10^4."""
    centre = y.double().mean(0).to(y)
    return x - centre, y - centre


def _two_samples(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], at_most: int, name: str
) -> Estimate:
    """Mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over different samples, and the jackknife's error."""
    count = min(len(x), len(y), at_most)
    count -= count % GROUPS
    if count < 2 * GROUPS:
        raise ValueError(f"{name} needs at least {2 * GROUPS} samples, got {len(x)} and {len(y)}")
    x, y = x[:count], y[:count]

    def blocks(a: Tensor, b: Tensor) -> Tensor:
        side = count // GROUPS
        return kernel(a, b).double().reshape(GROUPS, side, GROUPS, side).sum((1, 3))

    xy, xx, yy = blocks(x, y), blocks(x, x), blocks(y, y)

    def distance(keep: Tensor) -> float:
        n = count // GROUPS * int(keep.sum())
        cross, same = ((m[keep][:, keep]).sum() for m in (xy, xx + yy))
        return float(same / (n * (n - 1)) - 2 * cross / n**2)

    everyone = torch.ones(GROUPS, dtype=torch.bool)
    left_out = []
    for group in range(GROUPS):
        keep = everyone.clone()
        keep[group] = False
        left_out.append(distance(keep))
    return Estimate(distance(everyone), jackknife(left_out), count, tuple(left_out))


PointMetric = Callable[[Tensor, Tensor], Estimate]
POINT_METRICS: dict[str, PointMetric] = {
    "sliced_wasserstein": sliced_wasserstein,
    "energy_distance": energy_distance,
}
