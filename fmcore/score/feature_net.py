"""The small network whose penultimate layer serves as features, and what it is fitted to.

It has learnt to tell classes (or orientations) apart, so a model that drops a class scores worse on its features.
Random features and pixels hardly show that.
"""

from collections.abc import Callable
from math import log2
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor, nn

from fmcore.flow.pixels import dequantise
from fmcore.flow.training import Objective

FIT_DIMS = 64
HELD_OUT_EVERY = 5


class FeatureNet(nn.Module):
    """A few convolutions and a 64-unit layer, whose activations times `scale` are the features.

    A trained ReLU layer has no natural scale, and a Frechet distance grows with its square. `scale` gives the
    features of the data unit variance, averaged over dimensions, so that values mean the same for each seed
    and each data set. The data score 0. One image repeated scores about 64 (the number of dimensions) for the
    variance it lacks, plus its squared distance from the mean.
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

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N classes"]:
        """Class scores from what `features` returns."""
        scores: Tensor = self.head(features / self.scale)
        return scores

    def features(self, pixels: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """The features of 8-bit images."""
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

    Rotation needs no labels (Gidaris et al., arXiv:1803.07728): each image is shown in all four orientations,
    which are the classes.

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
