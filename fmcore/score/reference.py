"""The reference: the data's features and their statistics, which samples are compared with."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fmcore.disk.files import ArtifactError, check_kinds, read_tensors, write_tensors
from fmcore.disk.sums import check, is_there
from fmcore.flow.rng import generator
from fmcore.score.extractors import Extractor
from fmcore.score.frechet import Stats, stats

LABELS = "labels.safetensors"  # beside a reference: the classes of the data
HELD_OUT = "held_out.safetensors"  # beside it, if there are any: images that nothing was trained on
KEPT = 5000  # most features that metrics of neighbours and kernels use
FEATURE_BYTES = 2**29  # most memory for features kept one by one: those of 65,000 images under Inception
PARTS = 8  # random parts of the data, which the floor of the Frechet distance is made of


@dataclass(frozen=True)
class Reference:
    """The statistics of the data's features, and the features for metrics that need them one by one.

    Features of all images are kept if they fit into `FEATURE_BYTES`, else those of every n-th image. `parts` are
    the statistics of `PARTS` random parts of the data; a loaded reference has none.
    """

    stats: Stats
    features: Float[Tensor, "N D"]
    parts: tuple[Stats, ...] = ()

    def __add__(self, other: "Reference") -> "Reference":
        parts = tuple(a + b for a, b in zip(self.parts, other.parts, strict=True))
        return Reference(self.stats + other.stats, torch.cat([self.features, other.features]), parts)

    @property
    def kept(self) -> Float[Tensor, "K D"]:
        """At most `KEPT` of the features, spread evenly: enough for neighbours and kernels."""
        count = len(self.features)
        return self.features[torch.arange(min(count, KEPT)) * count // min(count, KEPT)]

    @property
    def complete(self) -> bool:
        """Whether the features of all images are kept, which the search for copies needs."""
        return len(self.features) == self.stats.count


def reference_parts(extractor: Extractor, batches: Iterable[Tensor], count: int) -> Iterator[Reference]:
    """The reference of each batch of the data, `count` images in all; they add up to that of the data.

    Memory does not grow with the number of images beyond `FEATURE_BYTES`.

    Raises:
        ValueError: if features are not finite; it names the first image.
    """
    every, first = -(-count * extractor.dims * 4 // FEATURE_BYTES), 0
    part_of = _dealt(count)
    for pixels in batches:
        found = extractor(pixels)
        bad = (~found.isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(
                f"{extractor.metric}: features of {len(bad)} of {len(found)} images of the data are not finite, "
                f"the first is image {first + bad[0]}"
            )
        part = part_of[first : first + len(found)].to(found.device)
        parts = tuple(stats(found[part == i]) for i in range(PARTS))
        yield Reference(stats(found), found[-first % every :: every].cpu(), parts)
        first += len(found)


def _dealt(count: int) -> Int64[Tensor, " count"]:
    """Which part each image is in: equal parts, in a fixed random order."""
    return torch.randperm(count, generator=generator(0, "features/floor")) % PARTS


def save_reference(path: Path, value: Reference) -> None:
    """Writes a reference as safetensors."""
    sums = {"count": torch.tensor(value.stats.count), "total": value.stats.total, "outer": value.stats.outer}
    write_tensors(path, {**sums, "features": value.features})


def load_reference(path: Path, dims: int | None = None) -> Reference:
    """Reads what `save_reference` wrote; an `ArtifactError` if it is something else or has not `dims` features."""
    check(path.parent, path.name)
    tensors = read_tensors(path)
    size = {name: tensor.numel() for name, tensor in tensors.items()}
    d = dims or size.get("total") or 1
    rows = size.get("features", 0) // d
    wanted = {"count": "() of torch.int64", "total": f"({d},) of torch.float64"}
    wanted |= {"outer": f"({d}, {d}) of torch.float64", "features": f"({rows}, {d}) of torch.float32"}
    check_kinds(path, tensors, wanted)
    if not 0 < rows <= int(tensors["count"]) or not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise ArtifactError(f"{path}: expected finite features of some or all of the images counted, got others")
    return Reference(Stats(int(tensors["count"]), tensors["total"], tensors["outer"]), tensors["features"])


def load_labels(folder: Path, num_classes: int) -> Int64[Tensor, " N"] | None:
    """The classes of the data that a reference was made of; None if they were not kept.

    Raises:
        ArtifactError: if the file is damaged, or knows other classes than 0..num_classes-1.
    """
    path = folder / LABELS
    if not is_there(folder, LABELS):
        return None
    label = read_tensors(path).get("label")
    if label is None or label.dtype != torch.int64 or label.ndim != 1 or not len(label):
        raise ArtifactError(f"{path}: expected a tensor label (N,) of torch.int64")
    if not 0 <= int(label.min()) <= int(label.max()) < num_classes:
        raise ArtifactError(f"{path}: expected labels in 0..{num_classes - 1}, got up to {int(label.max())}")
    return label


def data_digest(x: Tensor) -> str:
    """SHA-256 of a tensor's bytes: which data a reference was computed on."""
    return hashlib.sha256(x.cpu().contiguous().view(-1).numpy().data).hexdigest()
