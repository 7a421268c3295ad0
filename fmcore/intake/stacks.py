"""TIFFs that PIL does not open: of any number of channels, as microscopes and satellites write them."""

import logging
from typing import TYPE_CHECKING, Any

from fmcore.flow.errors import one_line
from fmcore.intake.planes import MAX_PIXELS, ORIENTATION, TURNS, ImageFile, Planes, UnreadableError, source

if TYPE_CHECKING:
    from tifffile import TiffFile


def planes_of(path: ImageFile, channels: int) -> Planes:
    """The first image of a TIFF with so many channels, or with 1 or 3 if one of these is wanted.

    They are the samples of its pixels, an axis C that OME or ImageJ wrote, or, unless there are 1 or 3, its pages.

    Raises:
        UnreadableError: if it has another number, or values of another kind than 8 or 16 bits without a sign.
    """
    import numpy as np

    tifffile = _tifffile()
    with tifffile.TiffFile(source(path)) as file:
        page = file.pages.first
        size = page.imagewidth * page.imagelength
        if size > MAX_PIXELS:
            raise UnreadableError(f"{page.imagewidth}x{page.imagelength} is over {MAX_PIXELS} pixels")
        if page.dtype not in (np.uint8, np.uint16):
            raise UnreadableError(f"has values of type {page.dtype}, expected 8 or 16 bits without a sign")
        if page.photometric not in (0, 1, 2):  # white as 0, black as 0, RGB
            raise UnreadableError(f"has colours by {page.photometric.name}, expected RGB or black as 0")
        done: tuple[str, ...] = ()
        if page.samplesperpixel == channels or {page.samplesperpixel, channels} == {1, 3}:
            values = page.asarray()
            values = np.moveaxis(values, 0, -1) if page.axes.startswith("S") else values
            values = values if values.ndim == 3 else values[:, :, None]
            done += ("first",) if len(file.pages) > 1 else ()
            done += ("alpha",) if {1, 2} & set(page.extrasamples) else ()
        elif (found := _axis(file, channels)) is not None:
            values, done = found
        else:
            there = _channels(file)
            pages = f" and {len(file.pages)} pages" if there == 1 and len(file.pages) > 1 else ""
            raise UnreadableError(f"has {there} channels{pages}, expected {channels}")
        if values.shape[:2] != (page.imagelength, page.imagewidth):
            raise UnreadableError(f"has axes {page.axes} of shape {page.shape}, expected one image")
        tag = page.tags.get(ORIENTATION)
        turn = tag.value if tag is not None and tag.value in TURNS else 1
    done += ("turned",) if turn > 1 else ()
    return Planes(values, None, done, turn, is_negative=page.photometric == 0)


def channels_of_tiff(path: ImageFile) -> int:
    """How many channels a TIFF's first image has; an `UnreadableError` if it is none."""
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(source(path)) as file:
            return _channels(file)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UnreadableError(one_line(error)) from None


def _tifffile() -> Any:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would say of a bad file is refused here
    return tifffile


def _channels(file: "TiffFile") -> int:
    page, series = file.pages.first, file.series[0]
    if page.samplesperpixel > 1:
        return int(page.samplesperpixel)
    return int(dict(zip(series.axes, series.shape, strict=True)).get("C", 1))


def _axis(file: "TiffFile", channels: int) -> tuple[Any, tuple[str, ...]] | None:
    """Channels that lie in pages: the array (H, W, C) and what was done; None if there are not so many."""
    import numpy as np

    series = file.series[0]
    if file.pages.first.samplesperpixel > 1:
        return None
    axes = dict(zip(series.axes, series.shape, strict=True))
    if axes.get("C") == channels:
        if series.size > MAX_PIXELS * channels:
            raise UnreadableError(f"has {series.size} values, expected at most {MAX_PIXELS} a channel")
        others = [axis for axis in series.axes if axis not in "CYX"]
        values = series.asarray()
        values = values[tuple(0 if axis in others else slice(None) for axis in series.axes)]
        kept = [axis for axis in series.axes if axis in "CYX"]
        done = ("first",) if any(axes[axis] > 1 for axis in others) else ()
        return values.transpose([kept.index(axis) for axis in "YXC"]), done
    if "C" not in axes and len(file.pages) == channels and channels not in (1, 3):
        return np.stack([page.asarray() for page in file.pages], axis=-1), ("pages",)
    return None
