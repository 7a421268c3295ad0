"""Data sets by name, as tensors.

Images come as (N, C, H, W), either float32 in [-1, 1] or 8-bit pixels; points as (N, 2) float32. A set's
configuration is a frozen dataclass: `check()` finds what is missing without reading everything, `load()`
reads it.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from fmcore import rng

POINTS_HELD_OUT = 10_000
MAX_PIXELS = 64_000_000
NAMED_BAD_FILES = 20
PIXEL = 1 / 127.5  # between 8-bit levels, in [-1, 1]


class DataError(ValueError):
    """Data that is missing or cannot be read; the message names the setting or the file."""


class Dataset(NamedTuple):
    """A loaded data set.

    Main arguments:
        x1: what to train on.
        label: classes 0..num_classes-1 of x1, or None.
        num_classes: None if there are no classes.
        reference: what generated samples are compared with: all training images, or points drawn apart.
        bin_width: distance in x1 between neighbouring grey levels, None for points.
    """

    x1: Tensor
    label: Tensor | None
    num_classes: int | None
    reference: Tensor
    bin_width: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.x1.shape[1:])


def folder_digest(root: str, keep: Callable[[Path], bool] = lambda path: True) -> str:
    """SHA-256 over the names and contents of a folder's files, in order of name."""
    whole = hashlib.sha256()
    for path in sorted(path for path in Path(root).rglob("*") if path.is_file() and keep(path)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(root)} {content}\n".encode())
    return whole.hexdigest()


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 scanned digits, 8x8, 17 grey levels (UCI "Optical Recognition", test part)."""

    name: Literal["digits"] = "digits"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return (1, 8, 8)

    def check(self) -> str:
        """Ships inside scikit-learn: nothing can be missing or change."""
        return ""

    def load(self) -> Dataset:
        """(1797, 1, 8, 8) float32 in [-1, 1]; 10 classes."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x1 = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
        return Dataset(x1, torch.tensor(bunch.target, dtype=torch.int64), 10, x1, 1 / 8)


def _checkerboard(count: int, g: Generator) -> Tensor:
    column = torch.randint(4, (count,), generator=g)
    row = 2 * torch.randint(2, (count,), generator=g) + column % 2
    return torch.stack([column, row], 1) * 2 - 4 + 2 * torch.rand(count, 2, generator=g)


def _eight_gaussians(count: int, g: Generator) -> Tensor:
    angle = torch.randint(8, (count,), generator=g) * (pi / 4)
    centre = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.2 * torch.randn(count, 2, generator=g)


def _moons(count: int, g: Generator) -> Tensor:
    angle = pi * torch.rand(count, generator=g)
    upper = torch.rand(count, generator=g) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return 2 * (torch.stack([x - 0.5, y - 0.25], 1) + 0.06 * torch.randn(count, 2, generator=g))


@dataclass(frozen=True)
class _Points:
    count: int = 100_000

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return (2,)

    def check(self) -> str:
        """Drawn from a formula: nothing can be missing or change."""
        return ""

    def _load(self, sampler: Callable[[int, Generator], Tensor]) -> Dataset:
        name = sampler.__name__
        x1 = sampler(self.count, rng.generator(0, f"data/{name}"))
        return Dataset(x1, None, None, sampler(POINTS_HELD_OUT, rng.generator(0, f"data/{name}/held-out")))


@dataclass(frozen=True)
class Checkerboard(_Points):
    """Uniform on the 8 dark squares of a 4x4 board on [-4, 4]^2, the classic first demo."""

    name: Literal["checkerboard"] = "checkerboard"

    def load(self) -> Dataset:
        """(count, 2) float32."""
        return self._load(_checkerboard)


@dataclass(frozen=True)
class EightGaussians(_Points):
    """Eight Gaussians of standard deviation 0.2 on a circle of radius 3."""

    name: Literal["eight_gaussians"] = "eight_gaussians"

    def load(self) -> Dataset:
        """(count, 2) float32."""
        return self._load(_eight_gaussians)


@dataclass(frozen=True)
class Moons(_Points):
    """Two interleaved half circles, centred and doubled in size."""

    name: Literal["moons"] = "moons"

    def load(self) -> Dataset:
        """(count, 2) float32."""
        return self._load(_moons)


@dataclass(frozen=True)
class _Torchvision:
    root: str
    download: bool = False

    def check(self) -> str:
        """A digest of the files under the root; a DataError if it is not there and must not be downloaded."""
        self._find()
        return folder_digest(self.root)

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


@dataclass(frozen=True)
class Images:
    """Any folder of images, searched to its depth; if all lie in subfolders, those name the classes.

    Main arguments:
        root: the folder.
        size: side of the square images: the shorter side is resized to it, the middle is cropped.
        grey: one channel instead of three.
    """

    root: str
    size: int
    grey: bool = False
    name: Literal["images"] = "images"

    def __post_init__(self) -> None:
        if self.size < 4:
            raise ValueError(f"size must be at least 4 pixels, got {self.size}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return (1 if self.grey else 3, self.size, self.size)

    def check(self) -> str:
        """A digest of the images; a DataError if the folder is missing or holds none."""
        self._find()
        return folder_digest(self.root, lambda path: path.suffix.lower() in SUFFIXES)

    def _find(self) -> list[Path]:
        try:
            return image_paths(self.root)
        except DataError as error:
            raise DataError(f"data.root: {error}") from None

    def load(self) -> Dataset:
        """(N, 3 or 1, size, size) uint8; a DataError lists the files that cannot be read."""
        paths = self._find()
        x1 = torch.empty((len(paths), 1 if self.grey else 3, self.size, self.size), dtype=torch.uint8)
        bad: list[str] = []
        for i, path in enumerate(paths):
            try:
                x1[i] = _read_image(path, self.size, self.grey)
            except Exception as error:  # PIL raises what each decoder raises: OSError, SyntaxError, ...
                bad.append(f"{path}: {error}")
        if bad:
            shown = "; ".join(bad[:NAMED_BAD_FILES])
            raise DataError(f"data.root: {len(bad)} of {len(paths)} images cannot be read: {shown}")
        tops = [path.relative_to(self.root).parts for path in paths]
        names = sorted({parts[0] for parts in tops})
        if len(names) < 2 or any(len(parts) < 2 for parts in tops):
            return Dataset(x1, None, None, x1, PIXEL)
        label = torch.tensor([names.index(parts[0]) for parts in tops])
        return Dataset(x1, label, len(names), x1, PIXEL)


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def image_paths(root: str | Path) -> list[Path]:
    """The images under a folder, in order of name; a DataError if there is no folder or no image in it."""
    if not Path(root).is_dir():
        raise DataError(f"no folder {str(root)!r}; expected a folder of images")
    paths = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        paths += [Path(folder, f) for f in sorted(files) if Path(f).suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(f"no image in {str(root)!r}; expected files ending in {', '.join(SUFFIXES)}")
    return paths


def _read_image(path: Path, size: int, grey: bool) -> Tensor:
    import numpy as np
    from PIL import Image, ImageOps

    # Formats by name: PIL would try all its decoders, some of them rarely used and rarely attacked.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{image.width}x{image.height} is over {MAX_PIXELS} pixels")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # PIL would clip 16-bit greys at 255 instead of scaling them
                upright = Image.fromarray((np.asarray(upright).astype(np.uint32) // 257).astype(np.uint8))
            upright = upright.convert("L" if grey else "RGB")
            square = ImageOps.fit(upright, (size, size), method=Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(square).copy())
    return pixels[None] if grey else pixels.permute(2, 0, 1)


Data = Digits | Checkerboard | EightGaussians | Moons | MNIST | FashionMNIST | CIFAR10 | Images
DATA = {config.name: config for config in get_args(Data)}
