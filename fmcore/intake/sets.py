"""Data sets by name.

A set's configuration is a frozen dataclass, and `load()` reads it.
"""

from pathlib import Path
from typing import get_args

from fmcore.disk.dataset import Dataset
from fmcore.intake.arrays import Arrays
from fmcore.intake.huggingface import HuggingFace
from fmcore.intake.images import Images
from fmcore.intake.known import CIFAR10, MNIST, Digits, FashionMNIST
from fmcore.intake.latents import Latents
from fmcore.intake.pictured import Pictures, Steps
from fmcore.intake.points import Checkerboard, EightGaussians, Moons
from fmcore.intake.vision import Torchvision

Data = (
    Digits
    | Checkerboard
    | EightGaussians
    | Moons
    | MNIST
    | FashionMNIST
    | CIFAR10
    | Images
    | Arrays
    | HuggingFace
    | Torchvision
    | Latents
)
DATA = {config.name: config for config in get_args(Data)}


def loading(data: Data, scratch: Path) -> Steps[Dataset]:
    """A data set, step by step, without filling the memory where its kind allows.

    Main arguments:
        scratch: a folder that what is read may lie in; a stopped run goes on from it.
    """
    if isinstance(data, Pictures):
        return (yield from data.loading(scratch))
    return data.load(scratch) if isinstance(data, Arrays) else data.load()


def are_images(data: Data) -> bool:
    """Whether samples are 8-bit images in the end, which features see; others are compared as points."""
    return len(data.shape) == 3 and getattr(data, "values", "pixels") == "pixels"


def sample_shape(data: Data) -> tuple[int, ...]:
    """The shape of what is compared: of latents, that of their images."""
    return data.images.shape if isinstance(data, Latents) else data.shape
