"""What several stages start with: the device, networks prepared for it, the classes, data with fresh noise."""

from dataclasses import replace

import torch

from flows.events import Note
from flows.params.schema import Params
from fmcore.disk.dataset import Dataset
from fmcore.flow import speed
from fmcore.flow.couplings import Independent
from fmcore.flow.speed import flops, prepare, room
from fmcore.models.folder import Trained


def device_of(params: Params) -> torch.device:
    """The device that params ask for.

    Raises:
        ValueError: if cuda is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if params.device == "cuda" and not there:
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device; expected auto or cpu here")
    return torch.device("cuda" if there and params.device != "cpu" else "cpu")


def set_up(params: Params, model: Trained, samples: float, *, training: bool = False) -> Note:
    """Prepares the model's network for evaluating, or training on, `samples` samples; the note says how.

    Raises:
        ValueError: if it is to be compiled and cannot be.
    """
    work = flops(model.network, model.shape, model.num_classes) * samples * (3 if training else 1)
    said = prepare(model.network, params.precision, params.compile, work=work, training=training)
    return Note(f"{model.device.type}: {said}")


def eager(model: Trained) -> Trained:
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
    """The data with fresh noise, on the device, or on the host if it would fill more than half of what is free."""
    stays = device.type != "cpu" and data.x1.nbytes > room(device)
    x1 = data.x1 if stays else data.x1.to(device)
    label = None if data.label is None or not labelled else data.label.to(x1.device)
    return Independent(x1, label, slow=stays)
