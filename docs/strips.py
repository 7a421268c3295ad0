"""Samples of two models from the same noise, row by row: python docs/strips.py PROJECT OUT

PROJECT is a checkout whose pipeline has run on images; OUT is the picture: the base at 4 and 16 evaluations (by
ab2), its student at 1 and 4.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import fmcore
from fmcore.flow.pixels import quantise
from fmcore.ode.sampling import Sampling

ROWS = (
    ("base", Sampling("ab2", nfe=4), "the base, 4 evaluations"),
    ("base", Sampling("ab2", nfe=16), "the base, 16 evaluations"),
    ("student", Sampling(nfe=1), "the student, 1 evaluation"),
    ("student", Sampling(nfe=4), "the student, 4 evaluations"),
)
COLUMNS, SEED = 20, 3


def main(project: Path, out: Path) -> None:
    """Draws the rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.3), dpi=150, layout="constrained")
    for axes, (name, how, said) in zip(figure.subplots(len(ROWS), 1), ROWS, strict=True):
        x1 = quantise(fmcore.load(project / "models" / name).sample(COLUMNS, how, seed=SEED))
        row = torch.cat(list(x1), dim=2).permute(1, 2, 0)
        axes.imshow(row.squeeze(2) if row.shape[2] == 1 else row, cmap="gray", vmin=0, vmax=255)
        axes.set_ylabel(said, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(out, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
