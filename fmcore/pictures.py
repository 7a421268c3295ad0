"""Pictures of samples: grids of images, scatter plots of points. matplotlib and PIL load when one is drawn."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fmcore.pixels import quantise

INK = "#1f5fbf"


def tile(pixels: UInt8[Tensor, "N C H W"], columns: int, gap: int = 1) -> UInt8[Tensor, "h w C"]:
    """Images side by side, `columns` to a row, on white."""
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, dtype=torch.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return sheet


def image_grid(samples: Float[Tensor, "N C H W"], path: Path, columns: int = 8, side: int = 48) -> None:
    """Writes images in [-1, 1] as a PNG grid; small ones are enlarged to about `side` pixels, unblurred."""
    from PIL import Image

    sheet = tile(quantise(samples), columns).numpy()
    image = Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet)
    scale = max(1, side // samples.shape[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path, format="PNG")


def scatter(points: Float[Tensor, "N 2"], path: Path) -> None:
    """Writes 2-D points as a PNG scatter plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.scatter(points[:, 0], points[:, 1], s=2, linewidths=0, color=INK, alpha=0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def sample_picture(samples: Float[Tensor, "N *D"], path: Path) -> None:
    """The picture that fits the samples: a grid for images, a scatter plot for 2-D points."""
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        image_grid(samples, path)
    elif samples.ndim == 2 and samples.shape[1] == 2:
        scatter(samples, path)
    else:
        raise ValueError(f"samples of shape {tuple(samples.shape[1:])} have no picture: use .safetensors")
