"""Two hundred odd image files, made by a script: each is read right or refused by its name."""

import numpy as np
import pytest
from PIL import ImageColor

from fmcore.intake.decoding import Levels, read_images
from fmcore.intake.planes import UnreadableError
from fmcore.intake.reading import How
from fmcore.intake.walk import found
from odd_files import KINDS, LOSSY, H, W, written

COUNT = 200


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    return folder, written(folder, COUNT, seed=0)


def seen(wanted, channels, background):
    """What a reading should give, (C, H, W) in grey levels: composited, grey by ITU-R 601."""
    behind = np.array(ImageColor.getrgb(background)[:3]) / 255
    colour, alpha = wanted.rgba[:, :, :3], wanted.rgba[:, :, 3:]
    x = 255 * (colour * alpha + behind * (1 - alpha))
    return (x @ np.array([0.299, 0.587, 0.114]))[None] if channels == 1 else x.transpose(2, 0, 1)


@pytest.mark.parametrize(("channels", "background"), [(3, "white"), (3, "#204060"), (1, "black")])
def test_each_is_read_right_or_refused(files, channels, background):
    folder, wanted = files
    assert len(wanted) == COUNT
    there = found(folder)
    assert set(there.images) == set(wanted), "no name is overlooked"
    assert not there.refused
    how = How(channels, background=background)
    wrong = []
    for path, read in zip(
        there.images, read_images(there.images, how, Levels(there.images, how, 65535)), strict=True
    ):
        truth = wanted[path]
        if isinstance(truth, str) or isinstance(read, UnreadableError):
            as_told = isinstance(truth, str) and isinstance(read, UnreadableError) and truth in str(read)
            if not as_told:
                wrong.append(f"{path.name!r}: {read if isinstance(read, UnreadableError) else 'was read'}")
            continue
        expected = seen(truth, channels, background)
        if expected.shape != read.pixels.shape:
            wrong.append(f"{path.name!r}: shape {read.pixels.shape}")
            continue
        off = np.abs(read.pixels - expected)
        if truth.tolerance == LOSSY:  # which blurs across the edges of blocks
            h, w = off.shape[1] // 4, off.shape[2] // 4
            off = off[:, h :: 2 * h, w :: 2 * w]
        if off.max() > truth.tolerance:
            wrong.append(f"{path.name!r}: off by {off.max():.1f} levels")
    assert not wrong, "\n".join(wrong)


def test_the_sample_has_all_kinds_of_each_format():
    suffixes = {name.rpartition(".")[2] for name in KINDS}
    assert suffixes == {"png", "jpg", "jpeg", "jfif", "webp", "bmp", "tif", "tiff", "gif", "avif"}
    assert len(KINDS) > 60
    assert (H, W) != (W, H)
