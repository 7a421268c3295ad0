"""Data sets by name.

A set's configuration is a frozen dataclass, and `load()` reads it.
"""

from typing import get_args

from fmcore.intake.images import Images
from fmcore.intake.known import CIFAR10, MNIST, Digits, FashionMNIST
from fmcore.intake.points import Checkerboard, EightGaussians, Moons

Data = Digits | Checkerboard | EightGaussians | Moons | MNIST | FashionMNIST | CIFAR10 | Images
DATA = {config.name: config for config in get_args(Data)}
