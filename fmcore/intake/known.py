"""Data sets that everyone knows, from the libraries that bring them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fmcore.disk.dataset import PIXEL, DataError, Dataset
from fmcore.flow.errors import first_line
from fmcore.intake.split import held_out


@dataclass(frozen=True)
class _Known:
    """What these sets have in common.

    Main arguments:
        held_out: share of the images that nothing is trained on. Generated images are compared with the others,
            and with these besides.
    """

    held_out: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")

    def _split(self, x1: Tensor, label: Tensor, bin_width: float) -> Dataset:
        held, told = held_out(self.held_out, len(x1))
        if not told:
            return Dataset(x1, label, 10, x1, bin_width)
        known = x1[~held]
        return Dataset(known, label[~held], 10, known, bin_width, notes=tuple(told), held_out=x1[held])


@dataclass(frozen=True)
class Digits(_Known):
    """scikit-learn's 1,797 scanned digits, 8x8, 17 grey levels (UCI "Optical Recognition", test part)."""

    name: Literal["digits"] = "digits"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return (1, 8, 8)

    def load(self) -> Dataset:
        """(N, 1, 8, 8) float32 in [-1, 1], N = 1797 but for what is held out; 10 classes."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x1 = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
        return self._split(x1, torch.tensor(bunch.target, dtype=torch.int64), 1 / 8)


@dataclass(frozen=True, kw_only=True)
class _Torchvision(_Known):
    root: str
    download: bool = False

    def _find(self) -> None:
        if not self.download and not Path(self.root).is_dir():
            raise DataError(
                f"data.root: no folder {self.root!r}; expected torchvision's layout there, or data.download: true"
            )

    def _load(self, kind: str) -> Dataset:
        import torchvision

        self._find()
        try:
            found = getattr(torchvision.datasets, kind)(self.root, train=True, download=self.download)
        except (RuntimeError, OSError) as error:
            line = first_line(error)
            raise DataError(f"data.root: {kind} could not be read from {self.root!r}: {line}") from None
        x1 = torch.as_tensor(found.data)
        x1 = x1[:, None] if x1.ndim == 3 else x1.permute(0, 3, 1, 2).contiguous()
        return self._split(x1, torch.as_tensor(found.targets, dtype=torch.int64), PIXEL)


@dataclass(frozen=True)
class MNIST(_Torchvision):
    """MNIST's 60,000 training images through torchvision."""

    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)

    name: Literal["mnist"] = "mnist"

    def load(self) -> Dataset:
        """(N, 1, 28, 28) uint8, N = 60000 but for what is held out; 10 classes."""
        return self._load("MNIST")


@dataclass(frozen=True)
class FashionMNIST(_Torchvision):
    """Fashion-MNIST's 60,000 training images through torchvision."""

    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)

    name: Literal["fashion_mnist"] = "fashion_mnist"

    def load(self) -> Dataset:
        """(N, 1, 28, 28) uint8, N = 60000 but for what is held out; 10 classes."""
        return self._load("FashionMNIST")


@dataclass(frozen=True)
class CIFAR10(_Torchvision):
    """CIFAR-10's 50,000 training images through torchvision."""

    shape: ClassVar[tuple[int, ...]] = (3, 32, 32)

    name: Literal["cifar10"] = "cifar10"

    def load(self) -> Dataset:
        """(N, 3, 32, 32) uint8, N = 50000 but for what is held out; 10 classes."""
        return self._load("CIFAR10")
