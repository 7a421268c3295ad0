"""The Frechet distance between features, from sums that add; its error, its bias and its floor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fmcore.score.estimates import Estimate, bias_corrected, jackknife, mean_estimate


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

    The error covers the samples drawn, but not the bias: the distance is too large on average, by about
    c (1/n + 1/m) for n samples and a reference of m (see `frechet_floor`).

    Raises:
        ValueError: if there are too few samples. For D features, the reference and the samples without a group
            must be more than D each; else a covariance is singular and the number means nothing.
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
    and all but a tenth of them. The bias from n is removed but for the order (D / n)^2; the bias from the size of
    the reference stays. Errors as for `frechet_estimate`.
    """
    return bias_corrected(frechet_estimate(groups, reference), [group.count for group in groups])


def frechet_floor(parts: Sequence[Stats]) -> Estimate:
    """The c of c (1/n + 1/m): the mean score of n fresh samples of the data's own distribution against m of it.

    `parts` are the statistics of equal random parts of the data; their number is a power of two. Each split of the
    parts into two halves gives the distance between the halves over 1/n + 1/m, and the value is the mean of these.
    It is right if the halves hold far more samples than there are dimensions.

    To first order a split's distance is a quadratic form of the parts' sum with signs. The splits taken are the
    rows of a Hadamard matrix, whose sums are independent, so the error is that of a mean.

    Raises:
        ValueError: if the number of parts is not a power of two from 4 on, or halves have too few samples.
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
