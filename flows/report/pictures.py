"""Pictures of the report that are not charts: samples, nearest training images, paths, samples between noises.

The page shows many small pictures with transparent backgrounds among its text. For files the same pictures are put
together on white, with labels.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from flows.report.figures import INK, colour_of
from flows.report.results import PARETO_NFE, Results, euler_of
from flows.report.words import evaluations, number
from fmcore.flow.pixels import quantise
from fmcore.pictures import EXTENT, animation, clear_tile, enlarged, plotted, png

Sheet = UInt8[Tensor, "h w 4"]
DOTS, PANEL = 220, 150  # pixels a side: scatter plots, images of an animation
SHORTEST, LAST, FRAME = 0.5, 1.6, 0.08  # seconds: the first frame, the last, one between
ANIMATION_BYTES = 600_000
CELL = 150  # about the pixels a side of a cell in a composed picture
SHOWN_IMAGES, SHOWN_POINTS = 16, 2000  # of a row of samples
GREY = "#808890"  # visible on white and on dark


class Row(NamedTuple):
    """Samples in a row, real ones or a model's: one picture each, or one of all where they are points."""

    name: str
    how: str
    distance: str
    pictures: list[str]


class Gallery(NamedTuple):
    """What the page shows, as data: URIs, and files by name for everything else.

    Main arguments:
        rows: real samples, and those of the best models at few evaluations and of the base at its most; `side` is
            that of an image in pixels, 0 of points.
        samples: by model, a cell for each of `nfes`, None where there is none.
        nearest: by model, pairs of a sample over its nearest training image, with their distance, closest first;
            only of models for which it is known.
        strips: by model, samples between two noises.
        trajectories: by flow, paths of points.
        flows: names over the panels of `moving`, a GIF, and of `still`, its last frame.
    """

    rows: list[Row]
    side: int
    nfes: list[int]
    samples: dict[str, list[str | None]]
    nearest: dict[str, list[tuple[str, float]]]
    strips: dict[str, str]
    trajectories: dict[str, str]
    flows: list[str]
    moving: str
    still: str
    files: dict[str, bytes]


def uri(data: bytes, kind: str = "png") -> str:
    """A picture as a data: URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def gallery(results: Results) -> Gallery:
    """Draws all pictures."""
    models, shown = results.models, results.shown
    nfes = sorted({int(key[6:]) for cells in shown.values() for key in cells if key.startswith("euler.")})
    cells = {m: [_samples(shown[m].get(f"euler.{nfe:04d}"), colour_of(models, m)) for nfe in nfes] for m in models}
    files = {"samples.png": composed(cells, [f"{nfe} NFE" for nfe in nfes])}
    flows = [model for model in models if "frames" in shown[model]]
    frames = _frames(flows, shown, models)
    seconds = [SHORTEST, *[FRAME] * (len(frames) - 2), LAST]
    files["flows.gif"] = animation(frames, seconds, ANIMATION_BYTES)
    nearest, strips, trajectories = {}, {}, {}
    if results.params.is_points:
        traced = [model for model in flows if "paths" in shown[model]]
        trajectories = {model: _paths(shown[model]["paths"], colour_of(models, model)) for model in traced}
        if traced:
            files["trajectories.png"] = composed({"": list(trajectories.values())}, traced)
    else:
        nearest = {model: _pairs(shown[model]) for model in models if "nearest" in shown[model]}
        if nearest:
            sheets = {m: [pair for pair, _ in pairs] for m, pairs in nearest.items()}
            files["nearest.png"] = composed(sheets, [""] * max(map(len, sheets.values())), cell=40)
        strips = {model: clear_tile(shown[model]["strips"].flatten(0, 1), 8) for model in models}
        files["strips.png"] = composed({m: [sheet] for m, sheet in strips.items()}, [""], cell=2 * CELL)
    return Gallery(
        rows=rows_of(results),
        side=0 if results.params.is_points else max(results.data.reference.shape[2:]),
        nfes=nfes,
        samples={m: [None if cell is None else uri(png(cell)) for cell in row] for m, row in cells.items()},
        nearest={m: [(uri(png(pair)), distance) for pair, distance in pairs] for m, pairs in nearest.items()},
        strips={model: uri(png(sheet)) for model, sheet in strips.items()},
        trajectories={model: uri(png(sheet)) for model, sheet in trajectories.items()},
        flows=flows,
        moving=uri(files["flows.gif"], "gif"),
        still=uri(png(frames[-1])),
        files=files,
    )


def rows_of(results: Results) -> list[Row]:
    """Real samples over generated ones; the same noise in a column."""
    data, is_points = results.data, results.params.is_points
    count = SHOWN_POINTS if is_points else SHOWN_IMAGES
    real = data.reference[torch.randperm(len(data.reference), generator=torch.Generator().manual_seed(1))[:count]]
    rows = [Row("real data", "", "", _pictures(real, GREY, is_points))]
    runs = euler_of(results)
    last = runs[runs.model == "base"].nfe.max()
    best = runs[runs.nfe.isin(PARETO_NFE)].sort_values("value", kind="stable").groupby("nfe", sort=True).first()
    wanted = [(str(row.model), int(str(nfe))) for nfe, row in best.iterrows()]
    for model, nfe in dict.fromkeys([*wanted, ("base", int(last))]):
        samples = results.shown[model].get(f"euler.{nfe:04d}")
        found = runs[(runs.model == model) & (runs.nfe == nfe)]
        if samples is not None:
            cells = _pictures(samples[:count], colour_of(results.models, model), is_points)
            rows.append(Row(model, evaluations(nfe), number(float(found.value.iloc[0])), cells))
    return rows


def _pictures(samples: Tensor, colour: str, is_points: bool) -> list[str]:
    if is_points:
        return [uri(png(plotted(samples, DOTS, colour)))]
    pixels = samples if samples.dtype == torch.uint8 else quantise(samples)
    return [uri(png(clear_tile(image[None], 1, gap=0))) for image in pixels]


def _samples(samples: Tensor | None, colour: str) -> Sheet | None:
    if samples is None:
        return None
    return plotted(samples, DOTS, colour) if samples.is_floating_point() else clear_tile(samples, 4)


def _pairs(shown: Mapping[str, Tensor]) -> list[tuple[Sheet, float]]:
    """Samples of the finest run over their nearest training images, closest first."""
    finest = shown[max(key for key in shown if key.startswith("euler."))]
    order = shown["nearest_distance"].argsort()
    both = torch.stack([finest, shown["nearest"]], 1)[order]
    return [
        (clear_tile(pair, 1), float(distance))
        for pair, distance in zip(both, shown["nearest_distance"][order], strict=True)
    ]


def _paths(paths: Float[Tensor, "knots N 2"], colour: str) -> Sheet:
    """Paths from noise (grey dots) to samples, on a transparent background."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3), dpi=150)
    canvas: Any = FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
    axes.plot(paths[:, :, 0], paths[:, :, 1], color=GREY, linewidth=0.6, alpha=0.55)
    axes.scatter(paths[0, :, 0], paths[0, :, 1], s=5, linewidths=0, color=GREY)
    axes.scatter(paths[-1, :, 0], paths[-1, :, 1], s=6, linewidths=0, color=colour)
    canvas.draw()
    return torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).view(450, 450, 4)


def _frames(flows: Sequence[str], shown: Mapping[str, Mapping[str, Tensor]], models: Sequence[str]) -> list[Sheet]:
    """All flows side by side at each stored time; the bar below them is as long as the time."""
    panels = [_panels(shown[model]["frames"], colour_of(models, model)) for model in flows]
    times = shown[flows[0]]["frame_times"].tolist()
    sheets = []
    for i, t in enumerate(times):
        parts: list[Tensor] = []
        for panel in panels:
            height, width, _ = panel[i].shape
            bar = torch.zeros(7, width, 4, dtype=torch.uint8)
            grey = torch.tensor([*bytes.fromhex(GREY[1:]), 255], dtype=torch.uint8)
            bar[5], bar[4:, : round(t * width)] = grey, grey
            parts += [torch.cat([panel[i], bar]), torch.zeros(height + 7, 8, 4, dtype=torch.uint8)]
        sheets.append(torch.cat(parts[:-1], 1))
    return sheets


def _panels(frames: Tensor, colour: str) -> list[Sheet]:
    """One flow's frames, with pixels either opaque or transparent."""
    if frames.is_floating_point():
        return [plotted(frame, DOTS, colour, opacity=1) for frame in frames]
    smaller = -(-4 * frames.shape[-1] // PANEL)
    if smaller > 1:
        pooled = torch.nn.functional.avg_pool2d(frames.flatten(0, 1).float(), smaller)
        frames = pooled.round().byte().view(*frames.shape[:3], *pooled.shape[-2:])
    sheets = [clear_tile(frame, 4) for frame in frames]
    return [enlarged(sheet, max(1, PANEL // sheet.shape[1])) for sheet in sheets]


def composed(rows: Mapping[str, Sequence[Sheet | None]], columns: Sequence[str], cell: int = CELL) -> bytes:
    """Pictures in rows and columns on white with their names, as one PNG file."""
    from matplotlib.figure import Figure

    sizes = [sheet.shape for row in rows.values() for sheet in row if sheet is not None]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    factor, gap = max(1, cell // width), 8
    h, w = factor * height + gap, factor * width + gap
    canvas = torch.full((h * len(rows), w * len(columns), 3), 255, dtype=torch.uint8)
    for y, row in enumerate(rows.values()):
        for x, sheet in enumerate(row):
            if sheet is not None:
                part = enlarged(sheet, factor).double()
                seen = part[:, :, 3:] / 255
                place = canvas[y * h : y * h + part.shape[0], x * w : x * w + part.shape[1]]
                place.copy_((part[:, :, :3] * seen + 255 * (1 - seen)).round().byte())
    dpi = 100
    left, top = (70 if any(rows) else 8), (24 if any(columns) else 8)
    full = canvas.shape[1] + left, canvas.shape[0] + top
    figure = Figure(figsize=(full[0] / dpi, full[1] / dpi), dpi=dpi)
    axes = figure.add_axes((left / full[0], 0, 1 - left / full[0], 1 - top / full[1]))
    axes.imshow(canvas.numpy(), interpolation="nearest", aspect="auto")
    axes.set_yticks([(y + 0.5) * h - gap / 2 for y in range(len(rows))], list(rows))
    axes.set_xticks([(x + 0.5) * w - gap / 2 for x in range(len(columns))], columns)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, colors=INK, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
