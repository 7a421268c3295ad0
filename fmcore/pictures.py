"""Pictures of samples: grids of images, scatter plots of points, animations.

A sheet is a picture that is not yet a file: bytes (h, w, channels), grey, RGB, or RGBA with a transparent
background. matplotlib and PIL load when a picture is drawn.
"""

import io
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fmcore.disk.files import write_file
from fmcore.flow.pixels import quantise

INK = "#1f5fbf"
EXTENT = 5.0  # points are shown in [-EXTENT, EXTENT]^2
RANGE = 3.5  # standardised values are shown in [-RANGE, RANGE]
SPREAD = 2.5  # of arrays that are no images, deviations from 0 to white or black
PAIRS, LINES = 4, 3  # pairs of coordinates, channels of series, at most in a picture


def tile(pixels: UInt8[Tensor, "N C H W"], columns: int, gap: int = 1, fill: int = 255) -> UInt8[Tensor, "h w C"]:
    """Images side by side, `columns` to a row, on a background of `fill` in all channels (255: white)."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), fill, dtype=torch.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return sheet


def visible(pixels: UInt8[Tensor, "N C H W"]) -> UInt8[Tensor, "N c H W"]:
    """Grey or RGB images as they are; of more channels the first three, of two the first."""
    return pixels[:, : 3 if pixels.shape[1] >= 3 else 1]


def clear_tile(pixels: UInt8[Tensor, "N C H W"], columns: int, gap: int = 1) -> UInt8[Tensor, "h w 4"]:
    """Images side by side, as far as they are `visible`, on a transparent background."""
    colour = visible(pixels).expand(-1, 3, -1, -1)
    return tile(torch.cat([colour, torch.full_like(pixels[:, :1], 255)], 1), columns, gap, fill=0)


def dots(
    points: Float[Tensor, "N 2"], side: int, colour: str, opacity: float = 0.6
) -> UInt8[Tensor, "side side 4"]:
    """Points of [-EXTENT, EXTENT]^2 as dots of 2x2 pixels, more opaque where they overlap, else transparent.

    Main arguments:
        colour: as #rrggbb.
        opacity: of one dot, in (0, 1].
    """
    cells = ((points.double() / EXTENT + 1) / 2 * side).round().long()
    hit = torch.cat([cells + torch.tensor(offset) for offset in product((-1, 0), repeat=2)])
    hit = hit[((hit >= 0) & (hit < side)).all(1)]
    counts = torch.bincount((side - 1 - hit[:, 1]) * side + hit[:, 0], minlength=side * side).view(side, side)
    sheet = torch.zeros(side, side, 4, dtype=torch.uint8)
    # At most six shades: PNG compresses them far better.
    sheet[:, :, 3] = (255 * (1 - (1 - opacity) ** counts.clamp(max=6).double())).round().byte()
    sheet[:, :, :3] = torch.tensor(list(bytes.fromhex(colour[1:])), dtype=torch.uint8) * (counts > 0)[:, :, None]
    return sheet


def plotted(
    samples: Float[Tensor, "N *D"], side: int, colour: str, opacity: float = 0.6
) -> UInt8[Tensor, "h w 4"]:
    """Samples that are no images, on a transparent background.

    Points of two coordinates are dots. Of one they are a histogram, of more the first pairs of coordinates side by
    side. Series are lines, one for each of the first channels; arrays are their first channels as colours.
    """
    if samples.ndim == 4:
        return clear_tile(quantise(samples / SPREAD), 4)
    if samples.ndim == 3:
        return _lines(samples, side, colour)
    dims = samples.shape[1]
    if dims == 1:
        return _histogram(samples[:, 0], side, colour)
    if dims == 2:
        return dots(samples, side, colour, opacity)
    pairs = [(min(i, dims - 2), min(i, dims - 2) + 1) for i in range(0, dims, 2)][:PAIRS]
    half = side // 2 - 1
    parts = [dots(samples[:, list(pair)] * (EXTENT / RANGE), half, colour, opacity) for pair in pairs]
    return tile(torch.stack(parts).permute(0, 3, 1, 2), 2, 1, fill=0)


def _histogram(values: Float[Tensor, " N"], side: int, colour: str) -> UInt8[Tensor, "side side 4"]:
    bins = torch.histc(values.float().clamp(-RANGE, RANGE), side // 4, -RANGE, RANGE)
    heights = (bins / bins.max().clamp_min(1) * (side - 1)).round().long().repeat_interleave(4)
    heights = torch.nn.functional.pad(heights, (0, side - len(heights)))
    rows = torch.arange(side)[:, None]
    return _coloured((side - rows) <= heights, colour)


def _lines(series: Float[Tensor, "N C L"], side: int, colour: str) -> UInt8[Tensor, "h w 4"]:
    """The first series in four rows of four, each on a sheet of its own."""
    cell, columns = side // 4 - 1, 4
    at = torch.linspace(0, series.shape[2] - 1, cell)
    left, share = at.floor().long(), at - at.floor()
    right = (left + 1).clamp(max=series.shape[2] - 1)
    shown = series[: columns**2, :LINES].float()
    value = shown[..., left] * (1 - share) + shown[..., right] * share
    row = ((1 - (value / RANGE + 1) / 2) * (cell - 1)).round().clamp(0, cell - 1)
    after = torch.cat([row[..., 1:], row[..., -1:]], -1)  # a line fills its column up to where the next begins
    low, high = torch.minimum(row, after), torch.maximum(row, after)
    y = torch.arange(cell)[:, None]
    hit = ((y >= low[:, :, None]) & (y <= high[:, :, None])).any(1)
    return tile(torch.stack([_coloured(one, colour) for one in hit]).permute(0, 3, 1, 2), columns, 1, fill=0)


def _coloured(hit: Bool[Tensor, "h w"], colour: str) -> UInt8[Tensor, "h w 4"]:
    sheet = torch.zeros(*hit.shape, 4, dtype=torch.uint8)
    sheet[hit] = torch.tensor([*bytes.fromhex(colour[1:]), 255], dtype=torch.uint8)
    return sheet


def on_white(sheet: UInt8[Tensor, "h w 4"]) -> UInt8[Tensor, "h w 3"]:
    """A sheet without transparency."""
    whole = sheet.int()
    return ((whole[:, :, :3] * whole[:, :, 3:] + 255 * (255 - whole[:, :, 3:])) // 255).byte()


def enlarged(sheet: UInt8[Tensor, "h w C"], factor: int) -> UInt8[Tensor, "H W C"]:
    """Each pixel as a square of `factor` pixels."""
    return sheet.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def png(sheet: UInt8[Tensor, "h w C"]) -> bytes:
    """A sheet as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((sheet[:, :, 0] if sheet.shape[2] == 1 else sheet).numpy()).save(
        file, format="PNG", optimize=True
    )
    return file.getvalue()


def animation(frames: Sequence[UInt8[Tensor, "h w 4"]], seconds: Sequence[float], limit: int) -> bytes:
    """Sheets as a GIF that loops, with as many colours as fit in `limit` bytes.

    A pixel is opaque or transparent, and all frames share their colours. While 32 colours are too many, every
    other frame is left out, but never the first or the last. `seconds` is how long each frame is shown.
    """
    from PIL import Image

    shown = list(range(len(frames)))
    while True:
        for colours in (255, 128, 64, 32):
            sheets = [frames[i] for i in shown]
            whole = Image.fromarray(torch.cat([sheet[:, :, :3] for sheet in sheets]).numpy())
            indices = whole.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            palette = (indices.getpalette() or [])[: 3 * colours]
            parts = torch.frombuffer(bytearray(indices.tobytes()), dtype=torch.uint8).view(
                len(sheets), *sheets[0].shape[:2]
            )
            pictures = []
            for part, sheet in zip(parts, sheets, strict=True):
                picture = Image.fromarray(part.masked_fill(sheet[:, :, 3] < 128, colours).numpy()).convert("P")
                picture.putpalette(palette + [0] * (3 * (colours + 1) - len(palette)))
                pictures.append(picture)
            lasting = [
                round(100 * sum(seconds[i:j])) * 10 for i, j in zip(shown, [*shown[1:], len(frames)], strict=True)
            ]
            file = io.BytesIO()
            pictures[0].save(
                file,
                format="GIF",
                save_all=True,
                append_images=pictures[1:],
                duration=lasting,
                loop=0,
                transparency=colours,
                disposal=2,
                optimize=False,
            )
            if file.tell() <= limit or (colours == 32 and len(shown) <= 2):
                return file.getvalue()
        shown = sorted({*shown[::2], shown[-1]})


def quick_picture(samples: UInt8[Tensor, "N C H W"] | Float[Tensor, "N *D"]) -> bytes:
    """8-bit images in a grid, or what else samples are on white, as a PNG file; made in some milliseconds."""
    if samples.is_floating_point():
        return png(enlarged(on_white(plotted(samples, 240, INK)), 2))
    return png(enlarged(tile(samples, 4), max(1, 48 // samples.shape[-1])))


def image_grid(samples: Float[Tensor, "N C H W"], path: Path, columns: int = 8, side: int = 48) -> None:
    """Writes images in [-1, 1] as a PNG grid; small ones are enlarged to about `side` pixels, unblurred."""
    sheet = tile(visible(quantise(samples)), columns)
    write_file(path, png(enlarged(sheet, max(1, side // samples.shape[-1]))))


def scatter(points: Float[Tensor, "N 2"], path: Path) -> None:
    """Writes 2-D points as a PNG scatter plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.scatter(points[:, 0], points[:, 1], s=2, linewidths=0, color=INK, alpha=0.5)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    write_file(path, drawn.getvalue())


def sample_picture(samples: Float[Tensor, "N *D"], path: Path) -> None:
    """Writes images in [-1, 1] as a grid, 2-D points as a scatter plot, others as `plotted`."""
    if samples.ndim == 4:
        image_grid(samples, path)
    elif samples.ndim == 2 and samples.shape[1] == 2:
        scatter(samples, path)
    else:
        write_file(path, png(enlarged(on_white(plotted(samples, 240, INK)), 2)))
