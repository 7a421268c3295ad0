"""The resume state of a training: everything `train` changes, in one safetensors file.

It needs no generator states (see `fmcore.flow.rng`). A checkpoint is written whole or not at all, with its
checksum in it. The newest two are kept, so a damaged one costs an interval, not the run.
"""

from pathlib import Path

import torch
from torch import Tensor

from fmcore.disk.files import ArtifactError
from fmcore.disk.kept import keep_tensors, kept_tensors
from fmcore.flow.training import TrainState

KEEP = 2


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {"step": torch.tensor(state.step)}
    for i, parameter in enumerate(state.network.parameters()):
        moments = state.optimizer.state[parameter]
        tensors[f"network.{i}"] = parameter.detach()
        for j, average in enumerate(state.averages):
            tensors[f"average{j}.{i}"] = average[i]
        tensors[f"exp_avg.{i}"] = moments["exp_avg"]
        tensors[f"exp_avg_sq.{i}"] = moments["exp_avg_sq"]
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def size(state: TrainState) -> int:
    """Bytes of a checkpoint, but for its header."""
    weights = sum(parameter.nbytes for parameter in state.network.parameters())
    return (3 + len(state.averages)) * weights


def save(state: TrainState, folder: Path) -> Path:
    """Writes `step-N.safetensors` and removes all but the newest `KEEP`."""
    path = folder / f"step-{state.step:010d}.safetensors"
    keep_tensors(path, _tensors(state))
    older = [other for other in sorted(folder.glob("step-*.safetensors")) if other.name <= path.name]
    for old in older[:-KEEP]:  # what claims to be newer is damaged, else this one would have begun there
        old.unlink()
    return path


def restore(state: TrainState, folder: Path) -> list[str]:
    """Loads the newest undamaged checkpoint into `state`; returns a line for each damaged one it passed over.

    Without any, or if all are damaged, the state stays as it is, and training starts from its first step.

    Raises:
        ArtifactError: if a checkpoint belongs to another network.
    """
    skipped: list[str] = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            tensors = kept_tensors(path)
        except ArtifactError as error:
            skipped.append(f"{path.name} is damaged and was passed over: {error}")
            continue
        _load(state, tensors, path)
        return skipped
    return skipped


@torch.no_grad()
def _load(state: TrainState, tensors: dict[str, Tensor], path: Path) -> None:
    parameters = list(state.network.parameters())
    if len(tensors) != (3 + len(state.averages)) * len(parameters) + 1:
        raise ArtifactError(f"{path} belongs to another network: it has another number of parameters")
    for i, parameter in enumerate(parameters):
        if tensors[f"network.{i}"].shape != parameter.shape:
            raise ArtifactError(f"{path} belongs to another network: parameter {i} has another shape")
        parameter.copy_(tensors[f"network.{i}"])
        for j, average in enumerate(state.averages):
            average[i].copy_(tensors[f"average{j}.{i}"])
        state.optimizer.state[parameter] = {
            "step": tensors["step"].to(parameter.device, torch.float32),
            # In the parameter's memory layout: fused AdamW pairs elements by their place in memory.
            "exp_avg": torch.empty_like(parameter).copy_(tensors[f"exp_avg.{i}"]),
            "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"exp_avg_sq.{i}"]),
        }
    state.step = int(tensors["step"])
