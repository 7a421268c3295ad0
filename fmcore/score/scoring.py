"""Scores of samples against data: one feature pass, batch by batch, then every distance that was asked for.

The Frechet distances and the inception score are computed from sums over all samples. Metrics of neighbours or
kernels use the first `KEPT` features. Samples may come from a model or from any folder of images.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from fmcore.score.estimates import Estimate, bias_corrected, group_sizes
from fmcore.score.extractors import Extractor
from fmcore.score.fidelity import FEATURE_METRICS, Classes, classes, inception_score
from fmcore.score.frechet import Stats, frechet_estimate, stats
from fmcore.score.points import POINT_METRICS, mmd
from fmcore.score.reference import KEPT, Reference

Sums = TypeVar("Sums", Stats, Classes)
METRICS = (*FEATURE_METRICS, "frechet_infinity", "inception_score")
UNSEEN = "_held_out"  # the end of a distance's name
METRICS_OF_POINTS = (*FEATURE_METRICS, "mmd")


class Score(NamedTuple):
    """A distance to the data and what it was measured with."""

    metric: str
    estimate: Estimate
    n_reference: int
    extractor: str
    digest: str


class Scorer(Protocol):
    """Takes samples batch by batch, then says how far they are from the data."""

    def add(self, x: Tensor) -> None: ...

    def scores(self) -> list[Score]: ...


class ImageScorer:
    """Frechet distance on the extractor's features, and the `metrics` named (any of `METRICS`).

    The distance to images that nothing was trained on, if there are any, has the same name with _held_out.

    Nothing in `add` waits for the device: on a GPU, features are extracted and summed while the caller prepares
    the next batch. Memory holds sums for each jackknife group and the first `KEPT` features, no more.

    Raises:
        ValueError: for an inception score if the extractor has no class scores; by `add` if there are more than
            `count` images; by `scores` if there are fewer, or features that are not finite.
    """

    def __init__(
        self,
        count: int,
        extractor: Extractor,
        reference: Reference,
        metrics: Sequence[str] = (),
        seed: int = 0,
        held_out: Reference | None = None,
    ) -> None:
        if "inception_score" in metrics and extractor.logits is None:
            raise ValueError(f"metrics: inception_score needs class scores, {extractor.metric} has none")
        self.count, self.extractor, self.reference, self.seed = count, extractor, reference, seed
        self.metrics, self.done, self.held_out = metrics, 0, held_out
        self.ends = list(accumulate(group_sizes(count)))
        self.groups, self.classes, self.kept = list[Stats](), list[Classes](), list[Tensor]()
        self.wrong, self.first_wrong = torch.tensor(0), torch.tensor(count)

    def add(self, x: UInt8[Tensor, "N C H W"]) -> None:
        """Adds images."""
        first, self.done = self.done, self.done + len(x)
        if self.done > self.count:
            raise ValueError(f"expected {self.count} images to score, got {self.done} or more")
        features = self.extractor(x)
        fine = features.isfinite().all(1)
        place = torch.arange(first, self.done, device=features.device)
        self.wrong = self.wrong + (~fine).sum()
        self.first_wrong = self.first_wrong.minimum(place.masked_fill(fine, self.count).amin())
        if first < KEPT and not FEATURE_METRICS.keys().isdisjoint(self.metrics):
            self.kept.append(features[: KEPT - first].clone())  # a view would keep the whole batch
        for group, end in enumerate(self.ends):
            start = self.ends[group - 1] if group else 0
            part = features[max(start - first, 0) : max(end - first, 0)]
            if not len(part):
                continue
            _add(self.groups, group, stats(part))
            if "inception_score" in self.metrics:
                assert self.extractor.logits is not None
                with torch.inference_mode():
                    _add(self.classes, group, classes(self.extractor.logits(part)))

    def scores(self) -> list[Score]:
        """The distances of all images added."""
        if self.done < self.count:
            raise ValueError(f"expected {self.count} images to score, got {self.done}")
        if wrong := int(self.wrong):
            raise ValueError(
                f"{self.extractor.metric}: the features of {wrong} of {self.count} images are not finite, "
                f"the first is image {int(self.first_wrong)}"
            )
        ex, reference = self.extractor, self.reference
        real = reference.stats.to(self.groups[0].total.device)
        found = []
        try:
            plain = frechet_estimate(self.groups, real)
            found.append((ex.metric, plain, real.count))
            if self.held_out:
                unseen = self.held_out.stats.to(self.groups[0].total.device)
                found.append((f"{ex.metric}{UNSEEN}", frechet_estimate(self.groups, unseen), unseen.count))
        except ValueError:  # too few images for this distance, but perhaps not for the others
            if not self.metrics or "frechet_infinity" in self.metrics:
                raise
        for metric in self.metrics:
            if metric == "frechet_infinity":
                estimate = bias_corrected(plain, [group.count for group in self.groups])
                found.append((f"{ex.metric}_inf", estimate, real.count))
            elif metric == "inception_score":
                name = metric if ex.name.startswith("inception") else "classifier_score"
                found.append((name, inception_score(self.classes), 0))
            else:
                estimates = FEATURE_METRICS[metric](torch.cat(self.kept), reference.kept, self.seed)
                found += [(key, value, len(reference.kept)) for key, value in estimates.items()]
        return [Score(key, estimate, rows, ex.name, ex.digest) for key, estimate, rows in found]


def _add(groups: list[Sums], group: int, found: Sums) -> None:
    """Adds to the last group of the list, or begins the next."""
    if group < len(groups):
        groups[group] = groups[group] + found
    else:
        groups.append(found)


class PointScorer:
    """Every distance of `POINT_METRICS` to the reference, and the `metrics` named, with points as features.

    Series and arrays are points of as many coordinates as they have numbers.
    """

    def __init__(self, reference: Tensor, metrics: Sequence[str] = (), seed: int = 0) -> None:
        for name in metrics:
            if name not in METRICS_OF_POINTS:
                offered = ", ".join(METRICS_OF_POINTS)
                raise ValueError(f"metrics: expected any of {offered} for points, got {name!r}")
        self.reference, self.metrics, self.seed = reference.flatten(1), metrics, seed
        self.points: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Adds points."""
        self.points.append(x.flatten(1).cpu())

    def scores(self) -> list[Score]:
        """The distances of all points added."""
        x, real = torch.cat(self.points), self.reference
        if len(wrong := (~x.isfinite().all(1)).nonzero()):
            raise ValueError(f"{len(wrong)} of {len(x)} points are not finite, the first is point {int(wrong[0])}")
        found = []
        for name, metric in POINT_METRICS.items():
            estimate = metric(x, real)
            found.append(Score(name, estimate, estimate.samples, "points", ""))
        if "mmd" in self.metrics:
            estimate = mmd(x, real)
            found.append(Score("mmd", estimate, estimate.samples, "points", ""))
        for name in [name for name in self.metrics if name in FEATURE_METRICS]:
            estimates = FEATURE_METRICS[name](x[:KEPT], real[:KEPT], self.seed)
            found += [Score(key, value, len(real[:KEPT]), "points", "") for key, value in estimates.items()]
        return found
