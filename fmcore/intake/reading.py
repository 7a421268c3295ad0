"""One image file as 8-bit pixels, and what was done to it on the way.

Every reader of image files reads them by this one: a data set and the folders that are compared with it.
"""

import io
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fmcore.flow.errors import one_line
from fmcore.intake.planes import (
    DEEP,
    MAX_PIXELS,
    ORIENTATION,
    TURNS,
    ImageFile,
    Planes,
    UnreadableError,
    source,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from PIL.ImageFile import ImageFile as Opening

# By name: PIL would try all its decoders, some of them rarely used and rarely attacked.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
UNKNOWN = "cannot be identified as an image"
BITS, PHOTOMETRIC, SAMPLES, PLANES, KINDS = 258, 262, 277, 284, 339  # tags of TIFF

Fit = Literal["crop", "pad", "stretch"]

# What can be done to a file, and how a report says it of some.
DONE = {
    "first": "hold several frames or pages, of which the first is taken",
    "pages": "hold their channels as pages",
    "transparent": "are transparent in part and lie on {background}",
    "alpha": "hold transparency, which is taken as a channel",
    "deep": "have 16 bits a channel, of which {levels} is white",
    "over": "have values over {levels}, which are cut to white",
    "cmyk": "are CMYK and became RGB, without a colour profile",
    "grey": "are in colour and became grey",
    "rgb": "are grey and became three equal channels",
    "turned": "are turned upright, as they say themselves",
    "enlarged": "are smaller than {size} and were enlarged",
}


@dataclass(frozen=True)
class How:
    """How files become pixels.

    Main arguments:
        channels: 1 for grey, 3 for RGB; images of another number of channels are TIFFs that have as many.
        size: (height, width) they are brought to, None to leave them as they are.
        fit: how: cropped to the middle, padded with the background, or stretched.
        background: what transparency lies on, a colour as PIL reads it: white, "#808080", "rgb(0, 0, 0)".
    """

    channels: int
    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    background: str = "white"


class Read(NamedTuple):
    """An image that was read.

    Main arguments:
        pixels: uint8 (C, H, W).
        done: keys of `DONE`.
        misfit: share of a side that was cropped or padded, or by which one side was stretched less than the other.
    """

    pixels: "np.ndarray[Any, Any]"
    done: tuple[str, ...]
    misfit: float


def read_image(path: ImageFile, how: How, white: Callable[[], int]) -> Read:
    """Reads an image; `white` is asked which value is white if it has 16 bits a channel.

    Raises:
        UnreadableError: if it cannot be read, or is of a kind that would be read wrongly.
    """
    import numpy as np

    opened = _opened(path, how)
    found, done = _flattened(opened, how, white) if isinstance(opened, Planes) else opened
    size = how.size or (found[0].height, found[0].width)
    misfit, is_smaller = _misfit(found[0].size, size, how.fit)
    parts = [np.asarray(_fitted(image, size, how) if how.size else image) for image in found]
    pixels = parts[0].transpose(2, 0, 1) if parts[0].ndim == 3 else np.stack(parts)
    return Read(pixels, (*done, "enlarged") if is_smaller else done, misfit)


def brightest(path: ImageFile, how: How) -> int:
    """The largest value in a file of 16 bits a channel, where it is not transparent; 0 for others and bad ones."""
    try:
        found = _opened(path, how, deep_only=True)
    except UnreadableError:
        return 0
    if not isinstance(found, Planes) or found.values.dtype.itemsize < 2:
        return 0
    visible = found.values if found.alpha is None else found.values[found.alpha > 0]
    return int(visible.max()) if visible.size else 0


def channels_of(path: ImageFile) -> int:
    """1 for a grey image, 3 for one in colour, or the channels of a TIFF of others; the header is read only.

    Raises:
        UnreadableError: if it is no image.
    """
    from PIL import Image, UnidentifiedImageError

    _need_file(path)
    try:
        with Image.open(source(path), formats=FORMATS) as image:
            return 1 if _is_grey(image.mode) else 3
    except UnidentifiedImageError:
        if not _is_tiff(path):
            raise UnreadableError(UNKNOWN) from None
    except Exception as error:
        raise UnreadableError(_reason(error)) from None
    from fmcore.intake.stacks import channels_of_tiff

    return channels_of_tiff(path)


Opened = tuple[list["Image.Image"], tuple[str, ...]]  # upright and in 8 bits, with what was done


def _opened(path: ImageFile, how: How, *, deep_only: bool = False) -> Opened | Planes:
    """What a file holds: an image in grey or RGB, or planes yet to be brought to 8 bits.

    With `deep_only` the pixels of 8-bit images are not read and do not come back.
    """
    _need_file(path)
    try:
        if how.channels in (1, 3):
            return _by_pil(path, how, deep_only)
        if not _is_tiff(path):
            raise UnreadableError(f"has {channels_of(path)} channels, expected a TIFF of {how.channels}")
        from fmcore.intake.stacks import planes_of

        return planes_of(path, how.channels)
    except UnreadableError:
        raise
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
        raise UnreadableError(_reason(error)) from None


def _by_pil(path: ImageFile, how: How, deep_only: bool) -> Opened | Planes:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source(path), formats=FORMATS) as image:
            _check(image, how)
            packed = _packed(image)
            turn = image.getexif().get(ORIENTATION, 1)
            turn = turn if turn in TURNS else 1
            done: tuple[str, ...] = ("first",) if getattr(image, "is_animated", False) else ()
            done += ("turned",) if turn > 1 else ()
            tags = _tags(image)
            turn = 1 if tags else turn  # PIL turns TIFFs itself
            if tags.get(PLANES) == 2 and 16 in tags.get(BITS, ()):  # PIL would take every byte for a pixel
                raise UnidentifiedImageError
            if image.mode.startswith("I;16") or packed[-4:-1] == ";16":
                values, alpha = _sixteen_bits(path, image, packed)
                return Planes(values, alpha, done, turn, is_negative=tags.get(PHOTOMETRIC) == 0)
            if deep_only:
                return [], ()
            image.load()
            flat, more = _opaque(image, how)
            return [flat if turn == 1 else flat.transpose(Image.Transpose[TURNS[turn]])], done + more
    except UnidentifiedImageError:
        if not _is_tiff(path):
            raise UnreadableError(UNKNOWN) from None
    from fmcore.intake.stacks import planes_of

    return planes_of(path, how.channels)


def _check(image: "Opening", how: How) -> None:
    """Refuses what is too large, and what PIL would read otherwise than it is meant."""
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(f"{image.width}x{image.height} is over {MAX_PIXELS} pixels")
    tags = _tags(image)
    if (there := tags.get(SAMPLES, 1)) > len(image.getbands()):
        raise UnreadableError(f"has {there} channels, expected {how.channels}")
    if image.mode in ("I", "F") or set(tags.get(KINDS, ())) - {1, 4}:
        raise UnreadableError("has values of 32 bits or signed ones, expected 8 or 16 bits without a sign")


def _tags(image: "Opening") -> Mapping[int, Any]:
    """Of a TIFF; none of other files."""
    return image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "La") or mode.startswith("I;16")


def _opaque(image: "Image.Image", how: How) -> tuple["Image.Image", tuple[str, ...]]:
    """An 8-bit image in grey or RGB, on the background where it is transparent."""
    import numpy as np
    from PIL import Image, ImageColor

    done: tuple[str, ...] = ("cmyk",) if image.mode == "CMYK" else ()
    done += _recoloured(_is_grey(image.mode), how)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if rgba[:, :, 3].min() < 255:
            done += ("transparent",)
            colour, alpha = rgba[:, :, :3].astype(np.uint16), rgba[:, :, 3:].astype(np.uint16)
            behind = np.array(ImageColor.getrgb(how.background)[:3], np.uint16)
            image = Image.fromarray(((colour * alpha + behind * (255 - alpha) + 127) // 255).astype(np.uint8))
    return image.convert("L" if how.channels == 1 else "RGB"), done


def _recoloured(is_grey: bool, how: How) -> tuple[str, ...]:
    return () if is_grey == (how.channels == 1) else ("rgb" if is_grey else "grey",)


def _packed(image: "Opening") -> str:
    """How the file's pixels lie, as PIL calls it."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _sixteen_bits(
    path: ImageFile, image: "Opening", packed: str
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any] | None"]:
    """The values (H, W, C) and the alpha (H, W) of an image of 16 bits a channel, uint16.

    PIL keeps the upper byte of each colour. Told that the bytes lie the other way round, it keeps the lower one.
    """
    import numpy as np

    whole: np.ndarray[Any, Any]
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    if image.mode.startswith("I;16"):
        whole = np.asarray(image).astype(np.uint16)[:, :, None]
    elif packed.startswith("LA;16"):
        quarters = _repacked(path, "RGBA").astype(np.uint16)
        whole = quarters[:, :, 0::2] << 8 | quarters[:, :, 1::2]
    elif packed[:-1] in ("RGB;16", "RGBA;16"):
        lower = _repacked(path, packed[:-1] + other[packed[-1]])
        whole = np.asarray(image).astype(np.uint16) << 8 | lower
    else:
        raise UnreadableError(f"has pixels packed as {packed}, expected grey or RGB, with or without plain alpha")
    if whole.shape[2] in (2, 4):
        return whole[:, :, :-1], whole[:, :, -1]
    if (key := image.info.get("transparency")) is not None:
        clear = (whole == np.array(key, np.uint16)).all(2)
        return whole, np.where(clear, 0, DEEP).astype(np.uint16)
    return whole, None


def _repacked(path: ImageFile, packed: str) -> "np.ndarray[Any, Any]":
    """The file's pixels as PIL reads them when told that they are packed otherwise."""
    import numpy as np
    from PIL import Image

    with Image.open(source(path), formats=FORMATS) as image:
        image.tile = [
            tile._replace(args=(packed, *tile.args[1:]) if isinstance(tile.args, tuple) else packed)
            for tile in image.tile
        ]
        return np.asarray(image)


def _flattened(found: Planes, how: How, white: Callable[[], int]) -> Opened:
    """Planes upright, in 8 bits, on the background: an image in grey or RGB, or one in grey for each channel."""
    import numpy as np
    from PIL import Image, ImageColor

    values, done = found.values, found.done
    if values.dtype == np.uint16:
        level = white()
        done += ("deep", "over") if (values > level).any() else ("deep",)
        values = np.minimum(values.astype(np.float32) * 255 / level, 255)  # exact but for the division
    if found.is_negative:
        values = 255 - values
    if found.alpha is not None and found.alpha.min() < DEEP:
        done += ("transparent",)
        share = found.alpha[:, :, None].astype(np.float32) / DEEP
        behind = np.array(ImageColor.getrgb(how.background)[:3], np.float32)
        values = values * share + behind * (1 - share)
    values = np.floor(values + 0.5).astype(np.uint8) if values.dtype == np.float32 else values
    if how.channels in (1, 3):
        done += _recoloured(found.values.shape[2] == 1, how)
        image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
        images = [image.convert("L" if how.channels == 1 else "RGB")]
    else:
        images = [Image.fromarray(values[:, :, i]) for i in range(how.channels)]
    turn = found.turn
    return (images if turn == 1 else [image.transpose(Image.Transpose[TURNS[turn]]) for image in images]), done


def _misfit(there: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[float, bool]:
    """By which share of a side (width, height) is of another form than (height, width), and if it is smaller."""
    (width, height), (tall, wide) = there, size
    ratios = wide / width, tall / height
    is_smaller = (min if fit == "pad" else max)(ratios) > 1
    a, b = width * tall, height * wide
    return 1 - min(a, b) / max(a, b), is_smaller


def _fitted(image: "Image.Image", size: tuple[int, int], how: How) -> "Image.Image":
    from PIL import Image, ImageColor, ImageOps

    sides, method = (size[1], size[0]), Image.Resampling.LANCZOS
    if how.fit == "crop":
        return ImageOps.fit(image, sides, method=method)
    if how.fit == "stretch":
        return image.resize(sides, method)
    colour = ImageColor.getcolor(how.background, image.mode)
    return ImageOps.pad(image, sides, method=method, color=colour)


def _need_file(path: ImageFile) -> None:
    """Refuses what would never end or hang, before it is opened."""
    if not isinstance(path, Path):
        return
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UnreadableError(_reason(error)) from None
    if not stat.S_ISREG(mode):
        raise UnreadableError("is no file, but a folder, a pipe, a socket or a device")


def _is_tiff(path: ImageFile) -> bool:
    with path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read()) as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _reason(error: Exception) -> str:
    """What an error says; one of the system says it without the name of the file."""
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
