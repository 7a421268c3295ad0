"""Feature extractors for Frechet distances: NCHW uint8 -> (N, D) float32.

Inception's features make sense for colour photographs only, and cost minutes a score without a GPU. For other
images a small classifier is fitted on the training split; its penultimate layer sees what a class is, so
a model that drops one is found out, where random or pixel features hardly notice.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log2
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor, nn

from fmcore.metrics import Stats, stats
from fmcore.pixels import dequantise
from fmcore.store import ArtifactError, read_json, read_tensors, sha256, write_json, write_tensors
from fmcore.training import Objective, Record, TrainConfig, averaged, new_state, train

FIT_DIMS = 64
HELD_OUT_EVERY = 5
INCEPTION_DIMS = 2048
# The published weights carry the first digits of their SHA-256 in their name.
INCEPTION_NAME, INCEPTION_SHA = "weights-inception-2015-12-05-6726825d.pth", "6726825d"
EXTRACTORS = ("classifier", "rotation", "inception", "none")


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


def _tasks(
    kind: str, x: Tensor, label: Tensor | None, batch_size: int
) -> tuple[Objective, Callable[[nn.Module, Tensor, Tensor | None], float]]:
    """The loss to fit with and the accuracy to report, for class labels or for the rotation task."""

    def accuracy(network: nn.Module, x: Tensor, target: Tensor) -> float:
        with torch.inference_mode():
            return float((network(x).argmax(1) == target).float().mean())

    if kind == "classifier":
        if label is None:
            raise ValueError("features.extractor is classifier, but the data has no classes: use rotation")

        def objective(network: nn.Module, g: Generator) -> Tensor:
            index = torch.randint(len(x), (batch_size,), generator=g, device=g.device)
            return nn.functional.cross_entropy(network(x[index]), label[index], reduction="none")

        def held_out(network: nn.Module, x: Tensor, label: Tensor | None) -> float:
            assert label is not None
            return accuracy(network, x, label)

        return objective, held_out

    # Which way up an image is can be asked of any data (Gidaris et al., arXiv:1803.07728).
    def turned(x: Tensor) -> tuple[Tensor, Tensor]:
        quarter = torch.arange(4, device=x.device).repeat_interleave(len(x))
        return torch.cat([x.rot90(k, (2, 3)) for k in range(4)]), quarter

    def rotation(network: nn.Module, g: Generator) -> Tensor:
        index = torch.randint(len(x), (max(1, batch_size // 4),), generator=g, device=g.device)
        images, quarter = turned(x[index])
        return nn.functional.cross_entropy(network(images), quarter, reduction="none")

    return rotation, lambda network, x, label: accuracy(network, *turned(x))


def fit(
    kind: str,
    pixels: UInt8[Tensor, "N C H W"],
    label: Int64[Tensor, " N"] | None,
    num_classes: int | None,
    config: TrainConfig,
    *,
    seed: int,
    folder: Path,
) -> Iterator[Record]:
    """Fits a `classifier` (on labels) or `rotation` extractor, writes it to `folder`, yields its progress.

    Every fifth image is held out, and the accuracy on those goes into the manifest.

    Raises:
        ValueError: for a classifier on data without classes, or images that are not square for rotation.
    """
    shape = tuple(pixels.shape[1:])
    if kind == "rotation" and shape[1] != shape[2]:
        raise ValueError(f"rotation features need square images, got {shape[1]}x{shape[2]}")
    classes = num_classes if kind == "classifier" and num_classes else 4
    x = dequantise(pixels)
    test = torch.arange(len(x), device=x.device) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    train_label = None if label is None else label[~test]
    objective, held_out = _tasks(kind, x[~test], train_label, config.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = new_state(FeatureNet(shape, classes).to(x.device), config)
    yield from train(state, objective, config, seed=seed)
    network = averaged(state)
    assert isinstance(network, FeatureNet)
    accuracy = held_out(network, x[test], None if label is None else label[test])
    network.scale.fill_(float(_spread(network, pixels)))
    write_tensors(folder / "extractor.safetensors", network.state_dict())
    write_json(
        folder / "manifest.json",
        {
            "extractor": kind,
            "shape": list(shape),
            "classes": classes,
            "held_out_accuracy": round(accuracy, 6),
            "held_out_images": int(test.sum()),
            "sha256": sha256(folder / "extractor.safetensors"),
        },
    )


def _spread(network: FeatureNet, pixels: UInt8[Tensor, "N C H W"]) -> Tensor:
    """1 / root mean variance of the features of the data."""
    with torch.inference_mode():
        found = torch.cat([network.features(part) for part in torch.split(pixels, 500)])
    return found.var(0).mean().rsqrt()


def adopt_inception(weights: str, folder: Path) -> None:
    """Records in `folder` which Inception weights file scores are computed with.

    Raises:
        ValueError: if the file is missing or is not a plain dictionary of tensors.
    """
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
    write_json(
        folder / "manifest.json",
        {"extractor": "inception", "weights": str(path.resolve()), "sha256": sha256(path)},
    )


def load_extractor(folder: Path, device: torch.device | str = "cpu") -> Extractor:
    """The extractor that the features stage fitted or adopted.

    Raises:
        ArtifactError: if its file is missing or is another than the manifest names.
    """
    manifest = read_json(folder / "manifest.json")
    kind = manifest["extractor"]
    path = Path(manifest["weights"]) if kind == "inception" else folder / "extractor.safetensors"
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


def feature_stats(extractor: Extractor, pixels: UInt8[Tensor, "N C H W"], batch: int = 500) -> Iterator[Stats]:
    """Statistics of the features of each batch; their sum is the statistics of all."""
    for part in torch.split(pixels, batch):
        yield stats(extractor(part))


def save_stats(path: Path, value: Stats) -> None:
    """Writes statistics as safetensors."""
    write_tensors(path, {"count": torch.tensor(value.count), "total": value.total, "outer": value.outer})


def load_stats(path: Path) -> Stats:
    """Reads what `save_stats` wrote."""
    tensors = read_tensors(path)
    return Stats(int(tensors["count"]), tensors["total"], tensors["outer"])


def data_digest(x: Tensor) -> str:
    """SHA-256 of a tensor's bytes: which data a reference was computed on."""
    return hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()
