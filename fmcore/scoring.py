"""Scores of samples against data: one feature pass, batch by batch, then every distance that was asked for.

Sums serve the Frechet distance, whatever the number of samples; what needs neighbours or kernels looks at the
first `KEPT` features. Samples may come from a model or from anyone's folder of images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from fmcore.data import DataError, image_paths
from fmcore.features import KEPT, Extractor, Reference
from fmcore.fidelity import FEATURE_METRICS
from fmcore.metrics import POINT_METRICS, Estimate, Stats, frechet_estimate, group_sizes, stats


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
    """Frechet distance on the extractor's features, and the `metrics` named."""

    def __init__(
        self, count: int, extractor: Extractor, reference: Reference, metrics: Sequence[str] = (), seed: int = 0
    ) -> None:
        self.extractor, self.reference, self.metrics, self.seed = extractor, reference, metrics, seed
        self.sizes, self.groups = group_sizes(count), list[Stats]()
        self.waiting, self.kept, self.missing = list[Tensor](), list[Tensor](), KEPT if metrics else 0

    def add(self, x: UInt8[Tensor, "N C H W"]) -> None:
        """Adds images."""
        found = self.extractor(x).cpu()
        self.kept.append(found[: self.missing])
        self.missing -= len(self.kept[-1])
        self.waiting.append(found)
        features = torch.cat(self.waiting)
        while len(self.groups) < len(self.sizes) and len(features) >= (size := self.sizes[len(self.groups)]):
            self.groups.append(stats(features[:size]))
            features = features[size:]
        self.waiting = [features]

    def scores(self) -> list[Score]:
        """The distances of all images added."""
        ex, reference = self.extractor, self.reference
        name = ex.metric.split("_", 1)[1]
        found = [
            Score(
                ex.metric, frechet_estimate(self.groups, reference.stats), reference.stats.count, name, ex.digest
            )
        ]
        features = torch.cat(self.kept)
        for metric in self.metrics:
            estimates = FEATURE_METRICS[metric](features, reference.features, self.seed)
            found += [
                Score(key, value, len(reference.features), name, ex.digest) for key, value in estimates.items()
            ]
        return found


class PointScorer:
    """Every distance of `POINT_METRICS` to some points, and the `metrics` named, with the points as features."""

    def __init__(self, reference: Tensor, metrics: Sequence[str] = (), seed: int = 0) -> None:
        self.reference, self.metrics, self.seed = reference, metrics, seed
        self.points: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Adds points."""
        self.points.append(x.cpu())

    def scores(self) -> list[Score]:
        """The distances of all points added."""
        x, real = torch.cat(self.points), self.reference
        found = []
        for name, metric in POINT_METRICS.items():
            estimate = metric(x, real)
            found.append(Score(name, estimate, estimate.samples, "points", ""))
        for name in self.metrics:
            estimates = FEATURE_METRICS[name](x[:KEPT], real[:KEPT], self.seed)
            found += [Score(key, value, len(real[:KEPT]), "points", "") for key, value in estimates.items()]
        return found


def folder_images(
    root: Path, shape: tuple[int, ...] | None, batch: int = 500
) -> Iterator[UInt8[Tensor, "N C H W"]]:
    """The images of a folder as they are, neither resized nor converted, in order of name.

    Main arguments:
        shape: (C, H, W) they must have; that of the first if None.

    Raises:
        DataError: that names the first file which cannot be read or differs in size or channels.
    """
    import numpy as np
    from PIL import Image

    paths = image_paths(root)
    for first in range(0, len(paths), batch):
        found = []
        for path in paths[first : first + batch]:
            try:
                with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
                    pixels = torch.from_numpy(np.asarray(image).copy())
            except Exception as error:  # PIL raises what each decoder raises: OSError, SyntaxError, ...
                raise DataError(f"{path} cannot be read: {error}") from None
            pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            shape = shape or tuple(pixels.shape)
            if pixels.dtype != torch.uint8 or tuple(pixels.shape) != shape:
                got = f"{tuple(pixels.shape)} of {str(pixels.dtype).removeprefix('torch.')}"
                raise DataError(
                    f"{path}: expected 8-bit images of shape {shape} (channels, height, width), got {got}"
                )
            found.append(pixels)
        yield torch.stack(found)
