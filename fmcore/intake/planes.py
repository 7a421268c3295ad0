"""Pixels as they lie in a file, of whatever kind it is."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

MAX_PIXELS = 64_000_000
DEEP = 65_535  # the largest value of 16 bits
ORIENTATION = 274  # the tag of EXIF and TIFF
# How PIL turns an image upright that is stored in an EXIF orientation.
TURNS = {
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"},
    **{6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}


class UnreadableError(ValueError):
    """A file that is no image that can be taken in; the message says why, its caller names the file."""


class Stored(NamedTuple):
    """An image file that lies inside another file, e.g. a row of a table; `read` returns its bytes."""

    name: str
    read: Callable[[], bytes]


ImageFile = Path | Stored


def source(file: ImageFile) -> Path | io.BytesIO:
    """What decoders open."""
    return file if isinstance(file, Path) else io.BytesIO(file.read())


class Planes(NamedTuple):
    """Pixels as they lie in a file.

    Main arguments:
        values: (H, W, C) uint8 or uint16.
        alpha: (H, W) uint16 over its whole range, None if all is opaque.
        done: keys of `DONE`.
        turn: the EXIF orientation they are stored in.
        is_negative: 0 is white.
    """

    values: "np.ndarray[Any, Any]"
    alpha: "np.ndarray[Any, Any] | None" = None
    done: tuple[str, ...] = ()
    turn: int = 1
    is_negative: bool = False
