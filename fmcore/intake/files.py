"""A folder of images as it is, to be scored: neither resized nor converted."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from fmcore.disk.dataset import DataError
from fmcore.flow.rng import generator
from fmcore.intake.images import image_paths


def folder_files(root: Path) -> list[Path]:
    """The images under a folder, in a fixed random order.

    Folders are often sorted by class, while error bars are made of groups of neighbours, and what needs kernels
    or a part of the images takes the first.
    """
    paths = image_paths(root)
    order = torch.randperm(len(paths), generator=generator(0, "evaluate/files"))
    return [paths[i] for i in order.tolist()]


def folder_images(
    paths: Sequence[Path], shape: tuple[int, ...] | None, batch: int = 500
) -> Iterator[UInt8[Tensor, "N C H W"]]:
    """Images as they are, neither resized nor converted.

    Main arguments:
        paths: of 8-bit grey or RGB images.
        shape: (C, H, W) they must have; that of the first if None.

    Raises:
        DataError: that names the first file which cannot be read or differs in size or channels.
    """
    import numpy as np
    from PIL import Image

    for first in range(0, len(paths), batch):
        found = []
        for path in paths[first : first + batch]:
            try:
                with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
                    mode, packed = image.mode, str(image.tile)
                    pixels = torch.from_numpy(np.asarray(image).copy())
            except Exception as error:  # PIL raises what each decoder raises: OSError, SyntaxError, ...
                raise DataError(f"{path} cannot be read: {error}") from None
            if mode not in ("L", "RGB") or ";16" in packed:  # PIL keeps the upper halves of 16-bit colours
                bits = " of 16 bits" if ";16" in packed else ""
                raise DataError(f"{path}: expected an image in 8-bit grey or RGB, got mode {mode}{bits}")
            pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            shape = shape or tuple(pixels.shape)
            if tuple(pixels.shape) != shape:
                raise DataError(
                    f"{path}: expected images of shape {shape} (channels, height, width), "
                    f"got {tuple(pixels.shape)}"
                )
            found.append(pixels)
        yield torch.stack(found)
