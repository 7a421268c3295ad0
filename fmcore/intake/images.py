"""Folders of images: as a data set, cut to squares of one size, or as they are, to be scored."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fmcore.disk.dataset import PIXEL, DataError, Dataset

MAX_PIXELS = 64_000_000
NAMED_BAD_FILES = 20


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
