"""Image files as people really keep them: of every format, mode and depth, with the values that lie in them.

A kind is a function that writes one file of random values and returns what should be seen there: (H, W, 4) numbers
in [0, 1], red, green, blue and alpha, and how exactly, or a part of the words with which it should be refused.
"""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

H, W = 16, 24  # four blocks, so that what is turned or lossy can be told
EXACT, LOSSY = 1.01, 14.0  # grey levels of 255


class Truth(NamedTuple):
    """What a file holds, (H, W, 4) in [0, 1], and by how many levels of 255 a reading may differ."""

    rgba: np.ndarray
    tolerance: float = EXACT


Kind = Callable[[Path, np.random.Generator], Truth | str]
KINDS: dict[str, Kind] = {}


def kind(*suffixes):
    """Registers a function under each suffix."""

    def register(function):
        for suffix in suffixes:
            KINDS[f"{function.__name__}.{suffix}"] = function
        return function

    return register


def values(random, channels, top=255, smooth=False):
    """(H, W, channels) whole numbers in [0, top]: noise, or four even blocks."""
    if smooth:
        blocks = random.integers(top // 8, top - top // 8, (2, 2, channels))
        return blocks.repeat(H // 2, 0).repeat(W // 2, 1)
    return random.integers(0, top + 1, (H, W, channels))


def truth(stored, top=255, tolerance=EXACT):
    """Of grey, grey and alpha, RGB or RGBA."""
    x = stored / top
    colour, alpha = (x[:, :, :-1], x[:, :, -1:]) if x.shape[2] in (2, 4) else (x, np.ones_like(x[:, :, :1]))
    return Truth(np.concatenate([np.broadcast_to(colour, (H, W, 3)), alpha], 2), tolerance)


def squeezed(stored, dtype=np.uint8):
    found = stored.astype(dtype)
    return found[:, :, 0] if found.shape[2] == 1 else found


def drawn(mode, stored):
    """PIL's image of values as they lie."""
    return Image.frombytes(mode, (stored.shape[1], stored.shape[0]), stored.astype(np.uint8).tobytes())


# --- through PIL ------------------------------------------------------------------------------------------------

LOSSLESS = {"png": {}, "bmp": {}, "tif": {}}
LOSSLESS |= {"webp": {"lossless": True, "exact": True}, "tiff": {"compression": "tiff_lzw"}}


def by_mode(mode, channels, *suffixes):
    def write(path, random):
        stored = values(random, channels)
        drawn(mode, stored).save(path, **LOSSLESS[path.suffix[1:].lower()])
        return truth(stored)

    write.__name__ = mode
    kind(*suffixes)(write)


by_mode("L", 1, "png", "bmp", "tif", "tiff")
by_mode("LA", 2, "png", "tif")
by_mode("RGB", 3, "png", "webp", "bmp", "tif", "tiff")
by_mode("RGBA", 4, "png", "webp", "tif", "tiff")


@kind("png", "bmp", "tif")
def bits(path, random):
    stored = values(random, 1, top=1)
    Image.fromarray(squeezed(255 * stored)).convert("1").save(path)
    return truth(stored, top=1)


@kind("png", "gif", "bmp", "tif")
def palette(path, random):
    colours, index = random.integers(0, 256, (16, 3)), random.integers(0, 16, (H, W))
    image = drawn("P", index)
    image.putpalette(colours.astype(np.uint8).tobytes())
    image.save(path)
    return truth(colours[index])


@kind("png", "gif")
def palette_with_a_clear_colour(path, random):
    colours, index = random.integers(0, 256, (16, 3)), random.integers(0, 16, (H, W))
    image = drawn("P", index)
    image.putpalette(colours.astype(np.uint8).tobytes())
    image.save(path, transparency=3)
    return truth(np.dstack([colours[index], np.where(index == 3, 0, 255)]))


@kind("png")
def palette_with_alpha(path, random):
    colours, index, alpha = (random.integers(0, 256, size) for size in ((16, 3), (H, W), 16))
    image = drawn("P", index % 16)
    image.putpalette(colours.astype(np.uint8).tobytes())
    image.save(path, transparency=bytes(alpha.tolist()))
    return truth(np.dstack([colours[index % 16], alpha[index % 16]]))


@kind("jpg", "jpeg", "jfif", "webp", "avif")
def lossy(path, random):
    stored = values(random, 3, smooth=True)
    more = {"format": "JPEG"} if path.suffix[1:].lower() in ("jpg", "jpeg", "jfif") else {}
    Image.fromarray(squeezed(stored)).save(path, quality=95, **more)
    return truth(stored, tolerance=LOSSY)


@kind("jpg")
def progressive_grey(path, random):
    stored = values(random, 1, smooth=True)
    Image.fromarray(squeezed(stored)).save(path, "JPEG", quality=95, progressive=True)
    return truth(stored, tolerance=LOSSY)


@kind("avif")
def avif_with_alpha(path, random):
    stored = values(random, 4, smooth=True)
    Image.fromarray(squeezed(stored)).save(path, quality=95)
    return truth(stored, tolerance=LOSSY)


@kind("jpg", "tif")
def for_print(path, random):
    """Without a profile, ink C leaves 1 - C of the red, and K takes its share of what is left."""
    stored = values(random, 4, smooth=True)
    image = drawn("CMYK", stored)
    image.save(path, **({} if path.suffix == ".tif" else {"format": "JPEG", "quality": 95}))
    ink = stored / 255
    return Truth(np.dstack([(1 - ink[:, :, :3]) * (1 - ink[:, :, 3:]), np.ones((H, W))]), LOSSY)


UPRIGHT = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.fliplr(np.rot90(a, -1))}
UPRIGHT |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.fliplr(np.rot90(a)), 8: np.rot90}


@kind("png", "jpg", "webp", "tif", "avif")
def turned(path, random):
    stored, way = values(random, 3, smooth=True), int(random.integers(2, 9))
    exif = Image.Exif()
    exif[274] = way
    Image.fromarray(squeezed(stored)).save(path, exif=exif, **({"quality": 95} if path.suffix != ".tif" else {}))
    x = UPRIGHT[way](stored / 255)
    return Truth(np.dstack([x, np.ones(x.shape[:2])]), EXACT if path.suffix in (".png", ".tif") else LOSSY)


@kind("png", "webp", "gif", "tif", "avif")
def several_frames(path, random):
    stored = [values(random, 3, smooth=True) for _ in range(3)]
    first, *others = (Image.fromarray(squeezed(frame)) for frame in stored)
    more = {"lossless": True} if path.suffix == ".webp" else {"quality": 95} if path.suffix == ".avif" else {}
    first.save(path, save_all=True, append_images=others, **more)
    return truth(stored[0], tolerance=LOSSY if path.suffix in (".avif", ".gif") else EXACT)


@kind("jpg")
def stereo_photograph(path, random):
    stored = [values(random, 3, smooth=True) for _ in range(2)]
    first, other = (Image.fromarray(squeezed(frame)) for frame in stored)
    first.save(path, "MPO", save_all=True, append_images=[other], quality=95)
    return truth(stored[0], tolerance=LOSSY)


# --- PNG by hand ------------------------------------------------------------------------------------------------


def png(path, stored, depth, more=b"", key=None):
    """A PNG of so many bits a channel; `key` is the clear colour."""
    height, width, channels = stored.shape
    lines = stored.astype(">u2") if depth == 16 else stored.astype(np.uint8)
    if depth < 8:
        flat = np.unpackbits(lines.reshape(height, width, 1), axis=2)[:, :, 8 - depth :]
        rows = [np.packbits(line).tobytes() for line in flat.reshape(height, -1)]
    else:
        rows = [line.tobytes() for line in lines]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
    ]
    chunks += [] if key is None else [(b"tRNS", key.astype(">u2").tobytes())]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    whole = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        whole += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(whole)


def deep_png(channels):
    def write(path, random):
        stored = values(random, channels, top=65535)
        png(path, stored, 16)
        return truth(stored, top=65535)

    write.__name__ = f"deep_{channels}"
    kind("png")(write)


for number in (1, 2, 3, 4):
    deep_png(number)


@kind("png")
def few_bits(path, random):
    depth = int(random.choice([1, 2, 4]))
    stored = values(random, 1, top=2**depth - 1)
    png(path, stored, depth)
    return truth(stored, top=2**depth - 1)


@kind("png")
def clear_colour(path, random):
    """Of 8 or 16 bits: one colour is transparent, and so are all pixels of it."""
    depth, channels = int(random.choice([8, 16])), int(random.choice([1, 3]))
    top = 2**depth - 1
    stored = values(random, channels, top=top, smooth=True)
    png(path, stored, depth, key=stored[0, 0])
    clear = (stored == stored[0, 0]).all(2, keepdims=True)
    return truth(np.concatenate([stored, np.where(clear, 0, top)], 2), top=top)


# --- TIFF through tifffile --------------------------------------------------------------------------------------


def tiff_options(random):
    return {"byteorder": str(random.choice(["<", ">"])), "compression": [None, "zlib"][random.integers(2)]}


@kind("tif", "tiff")
def deep_grey(path, random):
    stored = values(random, 1, top=65535)
    tifffile.imwrite(path, squeezed(stored, np.uint16), photometric="minisblack", **tiff_options(random))
    return truth(stored, top=65535)


@kind("tif", "tiff")
def deep_colour(path, random):
    stored, planar = values(random, 3, top=65535), bool(random.integers(2))
    lying = stored.transpose(2, 0, 1) if planar else stored
    how = {"photometric": "rgb", "planarconfig": "separate" if planar else "contig"}
    tifffile.imwrite(path, lying.astype(np.uint16), **how, **tiff_options(random))
    return truth(stored, top=65535)


@kind("tif")
def deep_with_alpha(path, random):
    stored = values(random, 4, top=65535)
    how = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, stored.astype(np.uint16), **how, **tiff_options(random))
    return truth(stored, top=65535)


@kind("tif")
def white_is_zero(path, random):
    dtype = (np.uint8, np.uint16)[random.integers(2)]
    top = np.iinfo(dtype).max
    stored = values(random, 1, top=top)
    tifffile.imwrite(path, squeezed(stored, dtype), photometric="miniswhite", **tiff_options(random))
    return truth(top - stored, top=top)


@kind("tif")
def of_kinds_without_a_range(path, random):
    dtype = (np.int16, np.float32, np.float64, np.uint32, np.int8)[random.integers(5)]
    tifffile.imwrite(path, squeezed(values(random, 1), dtype), photometric="minisblack")
    return "expected 8 or 16 bits"


@kind("tif")
def of_five_channels(path, random):
    tifffile.imwrite(path, values(random, 5).astype(np.uint8), photometric="minisblack", planarconfig="contig")
    return "has 5 channels, expected"


@kind("tif")
def colour_and_one_more(path, random):
    """Red, green, blue and near infrared."""
    how = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    tifffile.imwrite(path, values(random, 4).astype(np.uint8), **how)
    return "has 4 channels, expected"


@kind("tif")
def many_pages(path, random):
    stored = [values(random, 1) for _ in range(3)]
    with tifffile.TiffWriter(path) as file:
        for page in stored:
            file.write(squeezed(page), photometric="minisblack")
    return truth(stored[0])


# --- what is no image -------------------------------------------------------------------------------------------


@kind("png", "jpg", "webp", "bmp", "tif", "gif", "avif")
def cut_off(path, random):
    noise = squeezed(random.integers(0, 256, (64, 64, 3)))
    more = {"format": "JPEG"} if path.suffix == ".jpg" else {}
    Image.fromarray(noise).save(path, **more)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return ""


@kind("png", "tif")
def empty(path, random):
    path.write_bytes(b"")
    return "cannot be identified"


@kind("jpg", "gif")
def text(path, random):
    path.write_text("no image, whatever its name says")
    return "cannot be identified"


@kind("jpg", "webp", "tif", "bmp")
def png_by_another_name(path, random):
    stored = values(random, 3)
    Image.fromarray(squeezed(stored)).save(path, "PNG")
    return truth(stored)


@kind("png")
def another_format(path, random):
    Image.fromarray(squeezed(values(random, 3))).save(path, "PPM")
    return "cannot be identified"


NAMES = ("{}", "two words {}", "ümläut-{}", "-{}", "'{}'", "%s{}", "{}\n", "{}.v2", "照片{}", "{}" + "x" * 200)


def written(folder, count, seed):
    """A random sample of so many files, and what should be seen in each, by its path."""
    random = np.random.default_rng(seed)
    found: dict[Path, Truth | str] = {}
    for i in range(count):
        name = list(KINDS)[int(random.integers(len(KINDS)))] if i >= len(KINDS) else list(KINDS)[i]
        stem = NAMES[int(random.integers(len(NAMES)))].format(f"{i:03d}-{name.partition('.')[0]}")
        suffix = name.rpartition(".")[2]
        path = folder / f"{stem}.{suffix}"
        wanted = KINDS[name](path, random)
        if random.random() < 0.3:
            path = path.rename(path.with_suffix(f".{suffix.upper()}"))
        if random.random() < 0.2:  # bytes that are no UTF-8
            path = path.rename(
                folder / os.fsdecode(os.fsencode(path.stem[:150]) + b"\xff\xfe" + path.suffix.encode())
            )
        found[path] = wanted
    return found
