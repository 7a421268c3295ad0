"""The data as the report shows it: a grid by class, its levels, copies, and what was done as it was read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from flows.report.figures import INK, NARROW, Chart, chart
from flows.report.pictures import DOTS, Sheet, composed, uri
from fmcore.disk.dataset import PIXEL, Dataset
from fmcore.flow.pixels import quantise
from fmcore.pictures import clear_tile, plotted, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

A_ROW, ROWS = 10, 10  # images of a class, and classes shown; without classes as many in all
SHOWN_POINTS = 4000
HASHED = 2**28  # bytes of the data that are looked through for copies and levels
COLOUR = "#2b7de0"
# What the manifest counts, as `fmcore.intake` calls it; what it calls otherwise stands as it is.
DONE = {
    "first": "hold several frames or pages, of which the first was taken",
    "pages": "hold their channels as pages",
    "transparent": "are transparent in part and lie on {background}",
    "alpha": "hold transparency, which was taken as a channel",
    "deep": "have 16 bits a channel, of which {levels} is white",
    "over": "have values over {levels}, which were cut to white",
    "cmyk": "were CMYK and became RGB, without a colour profile",
    "grey": "were in colour and became grey",
    "rgb": "were grey and became three equal channels",
    "turned": "were turned upright, as they say themselves",
    "enlarged": "were smaller and were enlarged",
}


class Class(NamedTuple):
    """A class, how many samples are of it, and some of them."""

    name: str
    samples: int
    picture: str


class Shown(NamedTuple):
    """What the page shows of the data; `files` are the same pictures for everything else."""

    sentence: str
    done: list[str]
    classes: list[Class]
    levels: Chart | None
    files: dict[str, bytes]


def shown(data: Dataset, read: Mapping[str, Any]) -> Shown:
    """The data, drawn and in words; `read` is its manifest."""
    if data.encoding is not None:
        data = data._replace(x1=data.reference, bin_width=PIXEL)  # the images; nobody can see latents
    if data.bin_width is None:
        sheet = plotted(data.x1[:SHOWN_POINTS], DOTS, COLOUR)
        sentence = _counted(data)
        files = {"data.png": composed({"": [sheet]}, [""])}
        return Shown(sentence, [], [Class("", len(data.x1), uri(png(sheet)))], None, files)
    part = data.x1[: max(1, HASHED // max(1, data.x1[0].nbytes))]
    pixels = part if part.dtype == torch.uint8 else quantise(part)
    classes = _classes(data)
    rows = {f"{name}": [sheet] for name, _, sheet in classes}
    return Shown(
        _sentence(data, pixels, classes),
        _done(read),
        [Class(name, count, uri(png(sheet))) for name, count, sheet in classes],
        _levels(pixels),
        {"data.png": composed(rows, [""], cell=320)},
    )


def _counted(data: Dataset) -> str:
    """How many samples there are of what is no image."""
    count, shape = f"{len(data.x1):,}", data.shape
    many = f", of which {min(SHOWN_POINTS, len(data.x1)):,} are drawn" if len(shape) == 1 else ""
    kind = {1: "points of {0} coordinates", 2: "series of {0} channels and length {1}"}
    what = kind.get(len(shape), "arrays of {0} channels, {1} x {2}").format(*shape)
    classes = f" in {data.num_classes} classes" if data.num_classes else ""
    return f"{count} {what}{classes}{many}."


def _classes(data: Dataset) -> list[tuple[str, int, Sheet]]:
    """The commonest classes in their order, each with its first samples in a random order; or samples of all."""
    order = torch.randperm(len(data.x1), generator=torch.Generator().manual_seed(0))
    if data.label is None or not data.num_classes:
        found = order[: A_ROW * ROWS // 2].sort().values
        return [("", len(data.x1), clear_tile(_pixels(data.x1[found]), A_ROW))]
    counts = torch.bincount(data.label.long(), minlength=data.num_classes)
    kept = counts.argsort(descending=True, stable=True)[:ROWS].sort().values
    mixed, rows = data.label[order], []
    for label in kept.tolist():
        found = order[(mixed == label).nonzero()[:A_ROW, 0]]
        if len(found):
            name = data.names[label] if data.names else str(label)
            rows.append((name, int(counts[label]), clear_tile(_pixels(data.x1[found]), A_ROW)))
    return rows


def _pixels(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else quantise(images)


def _sentence(data: Dataset, pixels: Tensor, classes: Sequence[tuple[str, int, Sheet]]) -> str:
    channels, height, width = data.shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    text = f"{len(data.x1):,} {kind} images of {height}x{width}"
    if data.num_classes and data.label is not None:
        counts = torch.bincount(data.label.long(), minlength=data.num_classes)
        text += f" in {data.num_classes} classes of {counts.min():,} to {counts.max():,}"
        text += f" (the {len(classes)} largest are shown)" if data.num_classes > len(classes) else ""
    used = int((torch.bincount(pixels.flatten().long(), minlength=256) > 0).sum())
    text += f". They use {used} of 256 levels"
    return f"{text}. {_copies(pixels, len(data.x1))}"


def _copies(pixels: Tensor, count: int) -> str:
    """How many images are in the data more than once, byte by byte."""
    found = Counter(blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in pixels)
    again, most = len(pixels) - len(found), max(found.values())
    where = "" if len(pixels) == count else f" among the first {len(pixels):,}"
    if not again:
        return f"No image is there twice{where}."
    more = f", one of them {most} times" if most > 2 else ""
    return f"{again:,} {'is a copy' if again == 1 else 'are copies'} of others{where}{more}."


def _done(read: Mapping[str, Any]) -> list[str]:
    """What was done to the images as they were read, as the manifest says."""
    about = read.get("about") or {}
    unseen, names = about.get("held_out", 0), {key: about.get(key) for key in ("background", "levels")}
    total = read.get("count", 0) + unseen
    done = about.get("done") or {}
    lines = [
        f"{count:,} of {total:,} {DONE.get(key, key).format(**names)}" for key, count in done.items() if count
    ]
    if about.get("misfits"):
        share = f"{100 * about.get('largest_misfit', 0):.2g} %"
        lines.append(f"{about['misfits']:,} of {total:,} had another form: up to {share} of a side was changed")
    if unseen:
        lines.append(f"{unseen:,} of {total:,} are held out: nothing is trained on them")
    if lost := about.get("encoded"):
        scored = "".join(f", at {metric} {value:.3g}" for metric, value in (read.get("decoded") or {}).items())
        lines.append(
            f"all are trained on as latents; decoded again, {lost['images']:,} are {lost['grey_levels']:.3g} "
            f"of 255 grey levels off on average (PSNR {lost['psnr']:.1f} dB){scored}"
        )
    return lines


def _levels(pixels: Tensor) -> Chart:
    """How often each level is there, by channel."""
    counts = [torch.bincount(pixels[:, c].flatten().long(), minlength=256) for c in range(pixels.shape[1])]
    colours = ("#d6455d", "#12926f", "#2b7de0") if len(counts) == 3 else (INK,) * len(counts)

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for count, colour in zip(counts, colours, strict=True):
            share = (100 * count / count.sum()).tolist()
            axes.stairs(share, range(257), color=colour, fill=len(counts) == 1, linewidth=1.2, alpha=0.85)
        axes.set_xlim(0, 256)
        axes.set_xticks([0, 64, 128, 192, 255])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("level, from black to white" + (" (red, green, blue)" if len(counts) == 3 else ""))
        axes.set_ylabel("% of pixels")

    return chart("levels", "how often each level is there", (NARROW[0], 2.6), paint)
