"""Small image files that several tests make."""

import numpy as np
import tifffile
import torch
from PIL import Image


def picture(path, size=(12, 8), colour=(200, 100, 50), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


def deep(folder, top, count=3):
    """Scans of 16 bits with values up to `top`, which are returned."""
    random = np.random.default_rng(1)
    stored = random.integers(0, top + 1, (count, 8, 8)).astype(np.uint16)
    stored[0, 0, 0] = top
    for i, pixels in enumerate(stored):
        tifffile.imwrite(folder / f"{i}.tif", pixels)
    return torch.from_numpy(stored.astype(np.int64))
