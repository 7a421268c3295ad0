"""Scores of generated features against real ones beyond the Frechet distance.

A Frechet distance mixes how good samples are with what is missing, and is biased for few samples. The kernel
distance is unbiased. Precision and density say how good the samples are, recall and coverage what is missing, and
memorisation whether they are copies of the data. The inception score uses a classifier and no data.

Standard errors count the chance in both sets, samples and reference: a jackknife leaves out a tenth of each at a
time. The tenths are drawn at random, since rows may come sorted by class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fmcore.flow import rng
from fmcore.score.estimates import GROUPS, Estimate, jackknife

JACKKNIFED = 10_000  # most rows of each set that the error of a kernel distance is computed from
COMPARED = 5000  # most rows of the data whose distance to the rest of the data is measured
CHUNK = 500

Fake = Float[Tensor, "N D"]
Real = Float[Tensor, "M E"]  # E must be D: `_checked` says so more clearly than jaxtyping would


def kid(
    features: Fake, reference: Real, *, seed: int = 0, subsets: int = 100, subset_size: int = 1000
) -> Estimate:
    """Kernel inception distance: unbiased squared MMD of the kernel (x.y / D + 1)^3, mean over random subsets.

    Binkowski et al., arXiv:1801.01401; the value is torch-fidelity's for `rng_seed=seed`. `subset_size` is lowered
    to the size of the smaller set.

    The error has two parts. The spread of the subsets says how far their mean may be from the MMD of all rows. It
    is not the whole error, since the subsets overlap. The jackknife, on at most `JACKKNIFED` rows of each set and
    scaled to all, says how far the MMD of all rows may be from the truth. Where both sets have one distribution
    the jackknife's part is about 1.4 times too large, as for any degenerate U-statistic; far from there it is
    right.
    """
    from torch_fidelity import metric_kid

    x, y = (part.cpu() for part in _checked(features, reference, 2 * GROUPS))
    size = min(subset_size, len(x), len(y))
    found = metric_kid.kid_features_to_metric(
        x, y, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
    )
    mean, spread = (found[key] for key in (metric_kid.KEY_METRIC_KID_MEAN, metric_kid.KEY_METRIC_KID_STD))
    a, b = (_shuffled(part)[:JACKKNIFED] for part in (x, y))
    scale = max(len(a) / len(x), len(b) / len(y))
    return Estimate(mean, sqrt(scale * jackknife(_mmd_left_out(a, b)) ** 2 + spread**2 / subsets), len(x))


def precision_recall(
    features: Fake, reference: Real, *, neighbours: int = 3, chunk: int = CHUNK
) -> tuple[Estimate, Estimate]:
    """Share of the samples that lie among the data, and share of the data that lies among the samples.

    Kynkaanniemi et al., arXiv:1904.06991; the values are torch-fidelity's. A point lies among others if it is in
    one of their balls, whose radii are the distances to the k-th neighbours. So both shares depend on the sizes of
    the sets. Errors are up to about twice too large, since the rows' contributions depend on each other; for a
    share of 0 or 1 they are 0.
    """
    x, y = (_shuffled(part) for part in _checked(features, reference, GROUPS * (neighbours + 1)))
    samples, data = (_balls(b, a, neighbours, torch.le, chunk)[0] > 0 for a, b in ((x, y), (y, x)))
    return _estimate(samples, len(x)), _estimate(data, len(x))


def density_coverage(
    features: Fake, reference: Real, *, neighbours: int = 5, chunk: int = CHUNK
) -> tuple[Estimate, Estimate]:
    """The number of the data's balls that a sample lies in, over k, and the share of balls with a sample in them.

    Naeem et al., arXiv:2002.09797; unlike recall, coverage does not use the wide balls of outlying samples. For
    two sets of one distribution the density is 1 on average, the coverage about 1 - 2^-k if they are equal in
    size. Balls are open as in the authors' code, so a copy of the data has density 1. Errors as for precision.
    """
    x, y = (_shuffled(part) for part in _checked(features, reference, GROUPS * (neighbours + 1)))
    held, reached = _balls(y, x, neighbours, torch.lt, chunk)
    return _estimate(held / neighbours, len(x)), _estimate(reached, len(x))


def _checked(features: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both on one device and in one precision, single at least."""
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"features have {features.shape[1]} dimensions, the reference has {reference.shape[1]}")
    if min(len(features), len(reference)) < least:
        raise ValueError(f"expected at least {least} samples of each, got {len(features)} and {len(reference)}")
    for name, part in (("features", features), ("reference", reference)):
        bad = (~part.isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(f"{name}: {len(bad)} of {len(part)} rows are not finite, the first is row {bad[0]}")
    dtype = torch.promote_types(torch.promote_types(features.dtype, reference.dtype), torch.float32)
    return features.to(dtype), reference.to(features.device, dtype)


def _shuffled(points: Tensor) -> Tensor:
    """In a fixed random order, in which row i belongs to group i % GROUPS."""
    order = torch.randperm(len(points), generator=rng.generator(0, "fidelity/groups"))
    return points[order.to(points.device)]


def _mmd_left_out(x: Tensor, y: Tensor) -> list[float]:
    """The unbiased MMD of all rows but one group of each set, for each group."""
    from torch_fidelity.metric_kid import kernel_poly

    def means(a: Tensor, b: Tensor) -> Tensor:
        sums = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)
        for i in range(GROUPS):
            k = torch.from_numpy(kernel_poly(a[i::GROUPS].numpy(), b.numpy())).double()
            if a is b:
                k[:, i::GROUPS].fill_diagonal_(0)
            sums[i] = torch.stack([k[:, j::GROUPS].sum() for j in range(GROUPS)])
        found = []
        for g in range(GROUPS):
            keep = torch.arange(GROUPS) != g
            n, m = (len(part) - len(part[g::GROUPS]) for part in (a, b))
            found.append(sums[keep][:, keep].sum() / (n * (m - (a is b))))
        return torch.stack(found)

    left_out: list[float] = (means(x, x) + means(y, y) - 2 * means(x, y)).tolist()
    return left_out


def _kept(points: Tensor) -> Bool[Tensor, "ways N"]:
    """Which points are kept: all of them in row 0, all but one group in each of the others."""
    return (torch.arange(len(points)) % GROUPS != torch.arange(-1, GROUPS)[:, None]).to(points.device)


def _distances(x: Tensor, y: Tensor) -> Float[Tensor, "n m"]:
    # In double, then rounded, so that the error of the matrix product does not depend on the chunk.
    return torch.cdist(x.double(), y.double(), compute_mode="use_mm_for_euclid_dist").float()


def _balls(
    centres: Tensor, points: Tensor, neighbours: int, within: Callable[[Tensor, Tensor], Tensor], chunk: int
) -> tuple[Float[Tensor, "ways N"], Bool[Tensor, "ways M"]]:
    """In how many balls each point lies, and whether each ball holds a point, for each row of `_kept`."""
    kept_centres, kept_points = _kept(centres), _kept(points)
    held, reached = torch.zeros(kept_points.shape, device=points.device), torch.zeros_like(kept_centres)
    k = neighbours + 1  # a centre is its own nearest
    for first in range(0, len(centres), chunk):
        rows = slice(first, first + chunk)
        d = _distances(centres[rows], centres)
        nearest = torch.stack([d[:, g::GROUPS].topk(k, largest=False).values for g in range(GROUPS)], 1)
        d = _distances(centres[rows], points)
        for way, (centre, point) in enumerate(zip(kept_centres[:, rows], kept_points, strict=True)):
            groups = [g for g in range(GROUPS) if g != way - 1]
            radii = nearest[:, groups].flatten(1).topk(k, largest=False).values[:, -1]
            inside = within(d, radii.masked_fill(~centre, -torch.inf)[:, None]) & point
            held[way] += inside.float().sum(0)
            reached[way, rows] = inside.any(1)
    return held, reached


def _estimate(found: Tensor, samples: int) -> Estimate:
    """The mean of `found` over the rows kept (it is 0 at the others), with its jackknife error."""
    means = found.double().sum(1) / _kept(found[0]).sum(1)
    value, *left_out = means.tolist()
    return Estimate(value, jackknife(left_out), samples, tuple(left_out))


def nearest(features: Fake, reference: Real) -> tuple[Float[Tensor, " N"], Int64[Tensor, " N"]]:
    """How far each sample is from the row of the reference nearest to it, and which row that is."""
    distance, row = _nearest(*_checked(features, reference, 1), itself=False)
    found = distance.min(1)
    return found.values, row.gather(1, found.indices[:, None])[:, 0]


def _nearest(x: Tensor, y: Tensor, *, itself: bool) -> tuple[Float[Tensor, "N groups"], Int64[Tensor, "N groups"]]:
    """`nearest` in each group of y, so that distances of `CHUNK` rows to one group are in memory at a time.

    If `itself`, the rows of x are the first of y, and none is its own neighbour.
    """
    groups = min(GROUPS, len(y))
    distance = torch.empty(len(x), groups, device=x.device)
    row = torch.empty(len(x), groups, dtype=torch.int64, device=x.device)
    for first in range(0, len(x), CHUNK):
        part = slice(first, min(first + CHUNK, len(x)))
        for g in range(groups):
            rows = torch.arange(g, len(y), GROUPS, device=x.device)
            d = _distances(x[part], y[rows])
            if itself:
                d[rows == torch.arange(part.start, part.stop, device=x.device)[:, None]] = torch.inf
            row[part, g] = rows[d.argmin(1)]
            # By difference, since a product of matrices does not give two equal rows the distance 0.
            distance[part, g] = (x[part].double() - y[row[part, g]].double()).norm(dim=1).float()
    return distance, row


def memorisation(features: Fake, reference: Real) -> Estimate:
    """Median distance of a sample to the nearest row of the data, over that of a row of the data to the others.

    1 for samples of the data's own distribution, far below for copies, above for samples off the data.
    `reference` must be all that the model was trained on: what a sample copies may be in a part left out. Errors
    are up to twice too large.

    Raises:
        ValueError: if half of the reference's rows or more have a duplicate.
    """
    x, y = (_shuffled(part) for part in _checked(features, reference, 2 * GROUPS))
    samples, data = _nearest(x, y, itself=False)[0], _nearest(y[:COMPARED], y, itself=True)[0]

    def median(distance: Tensor, group: int) -> float:
        keep = torch.arange(GROUPS, device=x.device) != group
        rows = torch.arange(len(distance), device=x.device) % GROUPS != group
        return float(distance[rows][:, keep].amin(1).quantile(0.5))

    if not median(data, -1):
        raise ValueError(f"memorisation: half of the {len(y)} rows of the reference or more come twice")
    value, *left_out = (median(samples, g) / median(data, g) for g in range(-1, GROUPS))
    return Estimate(value, jackknife(left_out), len(x), tuple(left_out))


@dataclass(frozen=True)
class Classes:
    """Sums over samples of their class probabilities p and of p log p, in float64; they add as `Stats` do."""

    count: int
    total: Float[Tensor, " C"]
    plogp: Float[Tensor, ""]

    def __add__(self, other: "Classes") -> "Classes":
        return Classes(self.count + other.count, self.total + other.total, self.plogp + other.plogp)


def classes(logits: Float[Tensor, "N C"]) -> Classes:
    """The sums of some samples."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    return Classes(len(p), p.sum(0), (p * log_p).sum())


def inception_score(groups: Sequence[Classes]) -> Estimate:
    """exp E KL(p(class | x) | p(class)), mean over groups: from 1 up to the number of classes if all are made.

    Salimans et al., arXiv:1606.03498. They quote the standard deviation between ten groups; the error here is the
    standard error of the groups' mean, a third of it. The value is torch-fidelity's on samples not shuffled.
    """
    found = []
    for group in groups:
        q = group.total / group.count
        found.append(float((group.plogp / group.count - torch.xlogy(q, q).sum()).exp()))
    left_out = [(sum(found) - value) / (len(found) - 1) for value in found]
    count = sum(group.count for group in groups)
    return Estimate(sum(found) / len(found), jackknife(left_out), count, tuple(left_out))


FeatureMetric = Callable[[Tensor, Tensor, int], dict[str, Estimate]]
FEATURE_METRICS: dict[str, FeatureMetric] = {
    "kid": lambda x, y, seed: {"kid": kid(x, y, seed=seed)},
    "precision_recall": lambda x, y, _: dict(zip(("precision", "recall"), precision_recall(x, y), strict=True)),
    "density_coverage": lambda x, y, _: dict(zip(("density", "coverage"), density_coverage(x, y), strict=True)),
}
