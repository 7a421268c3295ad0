"""The small network whose penultimate layer serves as features, and what it is fitted to.

It has learnt to tell classes, orientations or damages apart, so a model that drops a class, or makes noise, scores
worse on its features. Random features and pixels hardly show that.
"""

from collections.abc import Callable
from math import log2
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor, nn

from fmcore.flow.pixels import dequantise
from fmcore.flow.rng import generator
from fmcore.flow.training import Objective

FIT_DIMS = 64
# Of the features of `views`, the part that tells damages apart, and what they are multiplied by: noise and blur
# move these features so far from the data's that nothing else would count beside them.
DAMAGE_PART, DAMAGE_SHARE = 4, 0.1
FEW, FEW_DIMS = 128, 8  # data of fewer images get as many features, whose covariance they can still fill
HELD_OUT_EVERY = 5
Damage = Callable[[Tensor, Generator], Tensor]


class FeatureNet(nn.Module):
    """A few convolutions and a layer of `dims` units, whose activations times `scale` are the features.

    A trained ReLU layer has no natural scale, and a Frechet distance grows with its square. `scale` gives the
    features of the data unit variance, averaged over dimensions, so that values mean the same for each seed
    and each data set. The data score 0. One image repeated scores about `dims` for the
    variance it lacks, plus its squared distance from the mean.
    """

    scale: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int, dims: int = FIT_DIMS) -> None:
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        for _ in range(max(1, round(log2(side / 4)))):
            layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
        self.body = nn.Sequential(*layers, nn.Linear(64 * 16, dims), nn.ReLU())
        self.head = nn.Linear(dims, classes)
        self.register_buffer("scale", torch.ones(()))

    @property
    def dims(self) -> int:
        """How many features there are."""
        return self.head.in_features

    @property
    def parts(self) -> "tuple[FeatureNet, ...]":
        """The networks whose scales are set apart."""
        return (self,)

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


class Views(nn.Module):
    """Two networks side by side: one has learnt which way up images are, the other which damage they have.

    One network for both gives most of its features to the damages, and hardly sees a class that is missing. The
    features of each have unit variance on the data; those of the second are multiplied by `DAMAGE_SHARE`.
    """

    def __init__(self, shape: tuple[int, ...], dims: int = FIT_DIMS) -> None:
        super().__init__()
        few = max(FEW_DIMS // 2, dims // DAMAGE_PART)
        self.turned = FeatureNet(shape, len(ways(shape)), dims - few)
        self.damaged = FeatureNet(shape, len(DAMAGES), few)

    @property
    def dims(self) -> int:
        """How many features there are."""
        return self.turned.dims + self.damaged.dims

    @property
    def parts(self) -> tuple[FeatureNet, ...]:
        """The networks whose scales are set apart."""
        return self.turned, self.damaged

    def forward(self, x: Float[Tensor, "M C H W"]) -> Float[Tensor, "N answers"]:
        """Scores of the ways up of the first half of the images, and of the damages of the other."""
        first, second = x.chunk(2)
        return torch.cat([self.turned(first), self.damaged(second)], 1)

    def features(self, pixels: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """The features of 8-bit images."""
        return torch.cat([self.turned.features(pixels), DAMAGE_SHARE * self.damaged.features(pixels)], 1)


class Fitting(NamedTuple):
    """What to train for an extractor, and how well it does on the images held out."""

    network: FeatureNet | Views
    objective: Objective
    held_out_accuracy: Callable[[nn.Module], float]
    held_out: int


class Task(NamedTuple):
    """What a network is asked of images.

    Main arguments:
        answers: how many answers each question has.
        asked: images at these indices, perhaps turned or damaged, and the right answers (B, questions).
        views: in how many ways `asked` shows each image.
    """

    answers: tuple[int, ...]
    asked: Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
    views: int = 1

    def loss(self, scores: Float[Tensor, "B answers"], right: Int64[Tensor, "B questions"]) -> Float[Tensor, " B"]:
        """The sum of the questions' cross entropies, for each image."""
        parts = enumerate(torch.split(scores, list(self.answers), 1))
        losses = [nn.functional.cross_entropy(part, right[:, i], reduction="none") for i, part in parts]
        return torch.stack(losses).sum(0)


def fitting(
    kind: str,
    pixels: UInt8[Tensor, "N C H W"],
    label: Int64[Tensor, " N"] | None,
    num_classes: int | None,
    *,
    batch_size: int,
    seed: int,
) -> Fitting:
    """How to fit a `classifier`, `rotation` or `views` extractor; every fifth image is held out.

    A network for fewer than `FEW` images has `FEW_DIMS` features.

    Raises:
        ValueError: for a classifier on data without classes, rotation of images that are not square, or fewer
            than `HELD_OUT_EVERY` images.
    """
    shape = tuple(pixels.shape[1:])
    if kind == "classifier" and (label is None or num_classes is None):
        raise ValueError("features.extractor: classifier needs data with classes; expected views for this data")
    if kind == "rotation" and shape[1] != shape[2]:
        raise ValueError(f"features.extractor: rotation needs square images, got {shape[1]}x{shape[2]}")
    if len(pixels) < HELD_OUT_EVERY:
        raise ValueError(f"features: expected at least {HELD_OUT_EVERY} images, got {len(pixels)}")
    if kind == "classifier":
        assert label is not None
        assert num_classes is not None
        task = _classes(pixels, label, num_classes)
    else:
        task = {"rotation": _turned, "views": _viewed}[kind](pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dims = FIT_DIMS if len(pixels) >= FEW else FEW_DIMS
        network = network_of(kind, shape, sum(task.answers), dims).to(pixels.device)
    test = torch.arange(len(pixels), device=pixels.device) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    train_index = (~test).nonzero()[:, 0]
    images = max(1, batch_size // task.views)

    def draw(g: Generator, progress: float) -> tuple[Tensor, Tensor]:
        return task.asked(train_index[torch.randint(len(train_index), (images,), generator=g, device=g.device)], g)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return task.loss(network(batch[0]), batch[1])

    def accuracy(network: nn.Module) -> float:
        """The share of right answers, a mean over the questions."""
        right = total = 0
        with torch.inference_mode():
            for number, index in enumerate(torch.split(test.nonzero()[:, 0], 500)):
                x, target = task.asked(index, generator(seed, "features/held-out", number, index.device))
                for i, scores in enumerate(network(x).split(task.answers, 1)):
                    right += int((scores.argmax(1) == target[:, i]).sum())
                    total += len(target)
        return right / total

    return Fitting(network, Objective(draw, loss), accuracy, int(test.sum()))


def network_of(kind: str, shape: tuple[int, ...], answers: int, dims: int) -> FeatureNet | Views:
    """A network for that kind of extractor, without weights yet."""
    return Views(shape, dims) if kind == "views" else FeatureNet(shape, answers, dims)


def ways(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The quarter turns that images are shown in: those that are not square upright and upside down only."""
    return (0, 1, 2, 3) if shape[1] == shape[2] else (0, 2)


def _classes(pixels: Tensor, label: Tensor, num_classes: int) -> Task:
    """Which class an image is of."""
    return Task((num_classes,), lambda index, g: (dequantise(pixels[index]), label[index][:, None]))


def _turned(pixels: Tensor) -> Task:
    """Which way up an image is, shown in all four orientations (Gidaris et al., arXiv:1803.07728)."""

    def asked(index: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        x = dequantise(pixels[index])
        quarter = torch.arange(4, device=x.device).repeat_interleave(len(x))
        return torch.cat([x.rot90(k, (2, 3)) for k in range(4)]), quarter[:, None]

    return Task((4,), asked, views=4)


def _viewed(pixels: Tensor) -> Task:
    """Which way up an image is, and which damage it has, and how strong, when it is shown upright.

    Orientation alone makes features that do not see noise: they are made to look through it.
    """
    turns = ways(tuple(pixels.shape[1:]))

    def asked(index: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        place = torch.arange(len(index), device=index.device)
        way, damage = place % len(turns), place % len(DAMAGES)
        x = pixels[index].float()
        turned, shown = torch.empty_like(x), torch.empty_like(x)
        for i, quarters in enumerate(turns):
            turned[way == i] = x[way == i].rot90(quarters, (2, 3))
        for i, damaged in enumerate(DAMAGES):
            shown[damage == i] = damaged(x[damage == i], g)
        both = torch.cat([turned, shown.clamp(0, 255).round()]) / 127.5 - 1
        return both, torch.stack([way, damage], 1)

    return Task((len(turns), len(DAMAGES)), asked, views=2)


def _noisy(deviation: float) -> Damage:
    return lambda x, g: x + deviation * torch.randn(x.shape, generator=g, device=x.device)


def _blurred(deviation: float) -> Damage:
    def blurred(x: Tensor, g: Generator) -> Tensor:
        weight = torch.exp(-(torch.arange(-2, 3, device=x.device) ** 2) / (2 * deviation**2))
        weight = (weight / weight.sum()).expand(x.shape[1], 1, 1, 5)
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
        along = nn.functional.conv2d(padded, weight, groups=x.shape[1])
        return nn.functional.conv2d(along, weight.transpose(2, 3), groups=x.shape[1])

    return blurred


def _brighter(by: float) -> Damage:
    return lambda x, g: x + by


def _contrasted(factor: float) -> Damage:
    def contrasted(x: Tensor, g: Generator) -> Tensor:
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + factor * (x - mean)

    return contrasted


# Of pixels in 0..255.
DAMAGES: tuple[Damage, ...] = (
    lambda x, g: x,
    *map(_noisy, (4, 10, 25)),
    *map(_blurred, (0.6, 1.2)),
    *map(_brighter, (15, -15)),
    *map(_contrasted, (0.75, 1.3)),
)
