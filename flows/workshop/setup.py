"""What several stages start with: the device, networks prepared for it, the classes, data with fresh noise."""

import os
import re
from dataclasses import replace
from pathlib import Path

import torch

from flows.events import Note
from flows.params.schema import Params
from fmcore.disk.dataset import Dataset
from fmcore.flow import speed
from fmcore.flow.couplings import Independent
from fmcore.flow.speed import flops, prepare, room
from fmcore.models.folder import Trained

DRIVER = Path("/proc/driver/nvidia/version")  # there if the kernel has NVIDIA's driver


def device_of(params: Params) -> torch.device:
    """The device that params ask for.

    Raises:
        ValueError: if cuda is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if params.device == "cuda" and not there:
        raise ValueError("device: cuda was asked for, but torch sees no CUDA device; expected auto or cpu here")
    return torch.device("cuda" if there and params.device != "cpu" else "cpu")


def processes_of(params: Params) -> int:
    """How many processes share a stage.

    Raises:
        ValueError: if there is no GPU or core for each.
    """
    wanted = params.launch.processes
    if wanted == 1:
        return 1
    # Else torch would look for a GPU by starting CUDA, which no forked process could use then.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    on_gpu = device_of(params).type == "cuda"
    there = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    if wanted == "auto":
        return there if on_gpu else 1
    if wanted > there:
        raise ValueError(
            f"launch.processes: expected at most {there}, one for each {'GPU' if on_gpu else 'core'}, got {wanted}"
        )
    return wanted


def set_up(params: Params, model: Trained, samples: float, *, training: bool = False) -> Note:
    """Prepares the model's network for evaluating, or training on, `samples` samples; the note says how.

    Raises:
        ValueError: if it is to be compiled and cannot be.
    """
    work = flops(model.network, model.shape, model.num_classes) * samples * (3 if training else 1)
    said = prepare(model.network, params.precision, params.compile, work=work, training=training)
    why = unused_gpu() if training and params.device == "auto" else None
    return Note(f"{model.device.type}: {said}" + (f"; {why}" if why else ""))


def unused_gpu() -> str | None:
    """Why torch does not use this machine's NVIDIA GPU; None if it does, and where there is none."""
    if torch.cuda.is_available() or not DRIVER.exists():
        return None
    version = re.search(r"\d+\.[\d.]+", DRIVER.read_text())
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} was built without CUDA"
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return "the NVIDIA GPU is not used: CUDA_VISIBLE_DEVICES hides it"
    else:
        driver = f"driver {version[0]}" if version else "its driver"
        why = (
            f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda}, and {driver} may be too old"
        )
    return f"the NVIDIA GPU is not used: {why}; https://pytorch.org/get-started/locally names the fitting wheels"


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
