"""Data sets by name.

A set's configuration is a frozen dataclass, and `load()` reads it.
"""

from typing import get_args

from fmcore.intake.arrays import Arrays
from fmcore.intake.huggingface import HuggingFace
from fmcore.intake.images import Images
from fmcore.intake.known import CIFAR10, MNIST, Digits, FashionMNIST
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
)
DATA = {config.name: config for config in get_args(Data)}


def are_images(data: Data) -> bool:
    """Whether the data are 8-bit images, which features see; others are compared as points."""
    return len(data.shape) == 3 and getattr(data, "values", "pixels") == "pixels"
