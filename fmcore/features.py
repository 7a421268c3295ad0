"""Feature extractors for Frechet distances: NCHW uint8 -> (N, D) float32.

Inception's features make sense for colour photographs only, and cost minutes a score without a GPU. For other
images a small classifier is fitted on the training split; its penultimate layer sees what a class is, so
a model that drops one is found out, where random or pixel features hardly notice.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor, nn

from fmcore.metrics import Stats, stats
from fmcore.pixels import dequantise
from fmcore.store import ArtifactError, read_json, read_tensors, sha256, write_json, write_tensors
from fmcore.training import Objective

FIT_DIMS = 64
KEPT = 5000  # features kept one by one: enough for neighbours and kernels, 40 MB of Inception's
HELD_OUT_EVERY = 5
INCEPTION_DIMS = 2048
# The published weights carry the first digits of their SHA-256 in their name.
INCEPTION_NAME, INCEPTION_SHA = "weights-inception-2015-12-05-6726825d.pth", "6726825d"


@dataclass(frozen=True)
class Extractor:
    """A feature extractor: `metric` names the distance on its features, `digest` its weights."""

    metric: str
    dims: int
    digest: str
    features: Callable[[Tensor], Tensor]

    def __call__(self, pixels: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Features of 8-bit images."""
        with torch.inference_mode():
            return self.features(pixels)


class FeatureNet(nn.Module):
    """A few convolutions and a 64-unit layer, whose activations times `scale` are the features.

    A trained ReLU layer has no natural scale, and a Frechet distance grows with its square. `scale` gives the
    features of the data unit variance, averaged over dimensions, so that values mean the same for each seed
    and each data set: 0 is the data, about 64 (the number of dimensions) is what a single image repeated gets
    from the spread it lacks, before its distance from the mean.
    """

    scale: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        for _ in range(max(1, round(log2(side / 4)))):
            layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
        self.body = nn.Sequential(*layers, nn.Linear(64 * 16, FIT_DIMS), nn.ReLU())
        self.head = nn.Linear(FIT_DIMS, classes)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N classes"]:
        """Class scores."""
        scores: Tensor = self.head(self.body(x))
        return scores

    def features(self, pixels: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """What `Extractor` calls."""
        found: Tensor = self.scale * self.body(dequantise(pixels.to(self.scale.device)))
        return found


class Fitting(NamedTuple):
    """What to train for an extractor, and how well it does on the images held out."""

    network: FeatureNet
    objective: Objective
    held_out_accuracy: Callable[[FeatureNet], float]
    held_out: int


def fitting(
    kind: str,
    pixels: UInt8[Tensor, "N C H W"],
    label: Int64[Tensor, " N"] | None,
    num_classes: int | None,
    *,
    batch_size: int,
    seed: int,
) -> Fitting:
    """How to fit a `classifier` (on labels) or a `rotation` extractor; every fifth image is held out.

    Which way up an image is can be asked of any data (Gidaris et al., arXiv:1803.07728): the rotation task shows
    each image in all four orientations.

    Raises:
        ValueError: for a classifier on data without classes, rotation of images that are not square, or fewer
            than `HELD_OUT_EVERY` images.
    """
    shape = tuple(pixels.shape[1:])
    if kind == "classifier" and (label is None or num_classes is None):
        raise ValueError("features.extractor: classifier needs data with classes; expected rotation for this data")
    if kind == "rotation" and shape[1] != shape[2]:
        raise ValueError(f"features.extractor: rotation needs square images, got {shape[1]}x{shape[2]}")
    if len(pixels) < HELD_OUT_EVERY:
        raise ValueError(f"features: expected at least {HELD_OUT_EVERY} images, got {len(pixels)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureNet(shape, num_classes if kind == "classifier" and num_classes else 4).to(pixels.device)
    test = torch.arange(len(pixels), device=pixels.device) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

    def task(index: Tensor) -> tuple[Tensor, Tensor]:
        x = dequantise(pixels[index])
        if kind == "classifier":
            assert label is not None
            return x, label[index]
        quarter = torch.arange(4, device=x.device).repeat_interleave(len(x))
        return torch.cat([x.rot90(k, (2, 3)) for k in range(4)]), quarter

    train_index = (~test).nonzero()[:, 0]
    images = batch_size if kind == "classifier" else max(1, batch_size // 4)

    def draw(g: Generator, progress: float) -> tuple[Tensor, Tensor]:
        return task(train_index[torch.randint(len(train_index), (images,), generator=g, device=g.device)])

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(network(batch[0]), batch[1], reduction="none")

    def accuracy(network: FeatureNet) -> float:
        right = total = 0
        with torch.inference_mode():
            for index in torch.split(test.nonzero()[:, 0], 500):
                x, target = task(index)
                right += int((network(x).argmax(1) == target).sum())
                total += len(target)
        return right / total

    return Fitting(network, Objective(draw, loss), accuracy, int(test.sum()))


def save_extractor(folder: Path, kind: str, fitted: Fitting, pixels: UInt8[Tensor, "N C H W"]) -> float:
    """Sets the scale of a fitted network, writes it to `folder`, and returns its held-out accuracy."""
    network = fitted.network.eval()
    accuracy = fitted.held_out_accuracy(network)
    network.scale.fill_(float(_spread(network, pixels)))
    write_tensors(folder / "extractor.safetensors", network.state_dict())
    write_json(
        folder / "manifest.json",
        {
            "extractor": kind,
            "shape": list(pixels.shape[1:]),
            "classes": network.head.out_features,
            "held_out_accuracy": round(accuracy, 6),
            "held_out_images": fitted.held_out,
            "sha256": sha256(folder / "extractor.safetensors"),
        },
    )
    return accuracy


def _spread(network: FeatureNet, pixels: UInt8[Tensor, "N C H W"]) -> Tensor:
    """1 / root mean variance of the features of the data."""
    with torch.inference_mode():
        found = torch.cat([network.features(part) for part in torch.split(pixels, 500)])
    return found.var(0).mean().rsqrt()


def adopt_inception(weights: str, folder: Path) -> None:
    """Records in `folder` which Inception weights scores are computed with; errors are those of `inception`."""
    digest = _inception_digest(weights)
    write_json(folder / "manifest.json", {"extractor": "inception", "sha256": digest})  # no path: machines differ


def inception(weights: str, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of FID proper, with the weights in that file.

    Raises:
        ValueError: if the file is missing or is not a plain dictionary of tensors.
    """
    return _inception(Path(weights), _inception_digest(weights), device)


def _inception_digest(weights: str) -> str:
    path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f"features.weights: no file {weights!r}; expected torch-fidelity's {INCEPTION_NAME}, "
            "which is never downloaded for you"
        )
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")  # torch-fidelity would unpickle anything
    except Exception as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"features.weights: {weights!r} is not a file of weights: {first}") from None
    if not (isinstance(found, dict) and found and all(isinstance(v, Tensor) for v in found.values())):
        raise ValueError(f"features.weights: {weights!r} is not a file of weights but a {type(found).__name__}")
    return sha256(path)


def load_extractor(folder: Path, device: torch.device | str = "cpu", weights: str | None = None) -> Extractor:
    """The extractor that the features stage fitted or adopted; `weights` is where Inception's file lies.

    Raises:
        ArtifactError: if its file is missing or is another than the manifest names.
    """
    manifest = read_json(folder / "manifest.json")
    kind = manifest["extractor"]
    path = Path(weights or "") if kind == "inception" else folder / "extractor.safetensors"
    if not path.is_file() or sha256(path) != manifest["sha256"]:
        raise ArtifactError(f"{path}: expected the extractor with SHA-256 {manifest['sha256']}")
    if kind == "inception":
        return _inception(path, manifest["sha256"], device)
    network = FeatureNet(tuple(manifest["shape"]), manifest["classes"])
    network.load_state_dict(read_tensors(path))
    network.to(device).eval()
    name = "cnn64" if kind == "classifier" else "rot64"
    return Extractor(f"fd_{name}", FIT_DIMS, manifest["sha256"], network.features)


def _inception(path: Path, digest: str, device: torch.device | str) -> Extractor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", [str(INCEPTION_DIMS)], feature_extractor_weights_path=str(path)
    ).to(device)

    def features(pixels: Tensor) -> Tensor:
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        found: Tensor = network(pixels.to(device))[0]
        return found

    # Other weights than the published ones give numbers that must not be taken for the FID.
    metric = "fid_inception" if digest.startswith(INCEPTION_SHA) else f"fd_inception_{digest[:8]}"
    return Extractor(metric, INCEPTION_DIMS, digest, features)


@dataclass(frozen=True)
class Reference:
    """The data under an extractor: its statistics, and some features for metrics that need them one by one."""

    stats: Stats
    features: Float[Tensor, "N D"]

    def __add__(self, other: "Reference") -> "Reference":
        return Reference(self.stats + other.stats, torch.cat([self.features, other.features]))


def reference_parts(extractor: Extractor, batches: Iterable[Tensor], count: int) -> Iterator[Reference]:
    """The reference of each batch of `count` images; the sum keeps every so many-th feature, `KEPT` at most."""
    every, first = -(-count // KEPT), 0
    for pixels in batches:
        found = extractor(pixels).cpu()
        yield Reference(stats(found), found[-first % every :: every])
        first += len(found)


def save_reference(path: Path, value: Reference) -> None:
    """Writes a reference as safetensors."""
    sums = {"count": torch.tensor(value.stats.count), "total": value.stats.total, "outer": value.stats.outer}
    write_tensors(path, {**sums, "features": value.features})


def load_reference(path: Path) -> Reference:
    """Reads what `save_reference` wrote."""
    tensors = read_tensors(path)
    return Reference(Stats(int(tensors["count"]), tensors["total"], tensors["outer"]), tensors["features"])


def data_digest(x: Tensor) -> str:
    """SHA-256 of a tensor's bytes: which data a reference was computed on."""
    return hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()
