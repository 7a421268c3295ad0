"""Data sets that everyone knows, from the libraries that bring them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from fmcore.disk.dataset import PIXEL, DataError, Dataset


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 scanned digits, 8x8, 17 grey levels (UCI "Optical Recognition", test part)."""

    name: Literal["digits"] = "digits"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return (1, 8, 8)

    def load(self) -> Dataset:
        """(1797, 1, 8, 8) float32 in [-1, 1]; 10 classes."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x1 = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
        return Dataset(x1, torch.tensor(bunch.target, dtype=torch.int64), 10, x1, 1 / 8)


@dataclass(frozen=True)
class _Torchvision:
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
            first = str(error).splitlines()[0]
            raise DataError(f"data.root: {kind} could not be read from {self.root!r}: {first}") from None
        x1 = torch.as_tensor(found.data)
        x1 = x1[:, None] if x1.ndim == 3 else x1.permute(0, 3, 1, 2).contiguous()
        return Dataset(x1, torch.as_tensor(found.targets, dtype=torch.int64), 10, x1, PIXEL)


@dataclass(frozen=True)
class MNIST(_Torchvision):
    """MNIST's 60,000 training images through torchvision."""

    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)

    name: Literal["mnist"] = "mnist"

    def load(self) -> Dataset:
        """(60000, 1, 28, 28) uint8; 10 classes."""
        return self._load("MNIST")


@dataclass(frozen=True)
class FashionMNIST(_Torchvision):
    """Fashion-MNIST's 60,000 training images through torchvision."""

    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)

    name: Literal["fashion_mnist"] = "fashion_mnist"

    def load(self) -> Dataset:
        """(60000, 1, 28, 28) uint8; 10 classes."""
        return self._load("FashionMNIST")


@dataclass(frozen=True)
class CIFAR10(_Torchvision):
    """CIFAR-10's 50,000 training images through torchvision."""

    shape: ClassVar[tuple[int, ...]] = (3, 32, 32)

    name: Literal["cifar10"] = "cifar10"

    def load(self) -> Dataset:
        """(50000, 3, 32, 32) uint8; 10 classes."""
        return self._load("CIFAR10")
