"""What several stages start with: the device, the classes models are conditioned on, the time grid."""

from collections.abc import Callable

import torch
from torch import Tensor

from flows.params import Params
from fmcore.data import Dataset
from fmcore.fields import VelocityField
from fmcore.solvers import Solver, optimised_grid
from fmcore.times import Grid, OptimisedGrid


def device_of(params: Params) -> torch.device:
    """The device that params ask for.

    Raises:
        ValueError: if cuda is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if params.device == "cuda" and not there:
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device; expected auto or cpu here")
    return torch.device("cuda" if there and params.device != "cpu" else "cpu")


def classes_of(params: Params, data: Dataset) -> int | None:
    """The number of classes models are conditioned on, None for unconditional ones.

    Raises:
        ValueError: if conditional models are asked for and the data has no classes.
    """
    if params.conditional and data.num_classes is None:
        raise ValueError(f"conditional: true needs data with classes, {params.data.name} has none; expected false")
    return data.num_classes if params.conditional else None


def knots_of(
    grid: Grid,
    steps: int,
    solver: Solver,
    field: VelocityField,
    some: Callable[[int], tuple[Tensor, Tensor | None]],
) -> Tensor:
    """The grid of that many steps; an optimised one is found on the noise and labels that `some(count)` draws."""
    if not isinstance(grid, OptimisedGrid):
        return grid(steps)
    x0, label = some(grid.trajectories)
    return optimised_grid(field, x0, steps, solver, label=label)
