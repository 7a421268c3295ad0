"""What several stages start with: the device, the classes models are conditioned on, the time grid."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flows.events import Note
from flows.params import Params
from fmcore import speed
from fmcore.couplings import Independent
from fmcore.data import Dataset
from fmcore.fields import VelocityField
from fmcore.solvers import Solver, optimised_grid
from fmcore.speed import flops, prepare, room
from fmcore.store import Model
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


def prepared(params: Params, model: Model, samples: float, *, training: bool = False) -> Note:
    """Sets the model's network up for that many evaluations, or samples to train on, and says how.

    Raises:
        ValueError: if it is to be compiled and cannot be.
    """
    work = flops(model.network, model.shape, model.num_classes) * samples * (3 if training else 1)
    said = prepare(model.network, params.precision, params.compile, work=work, training=training)
    return Note(f"{model.device.type}: {said}")


def eager(model: Model) -> Model:
    """The model with a network that is not compiled, for evaluations apart from the run it is compiled for."""
    return replace(model, network=speed.eager(model.network))


def classes_of(params: Params, data: Dataset) -> int | None:
    """The number of classes models are conditioned on, None for unconditional ones.

    Raises:
        ValueError: if conditional models are asked for and the data has no classes.
    """
    if params.conditional and data.num_classes is None:
        raise ValueError(f"conditional: true needs data with classes, {params.data.name} has none; expected false")
    return data.num_classes if params.conditional else None


def fresh(data: Dataset, device: torch.device, *, labelled: bool) -> Independent:
    """The data with fresh noise, on the device, or on the host if it would fill the device."""
    stays = device.type != "cpu" and data.x1.nbytes > room(device)
    x1 = data.x1 if stays else data.x1.to(device)
    label = None if data.label is None or not labelled else data.label.to(x1.device)
    return Independent(x1, label, slow=stays)


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
