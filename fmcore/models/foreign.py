"""Weights of networks as diffusers saves them: found, and loaded from safetensors alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fmcore.disk.files import ArtifactError
from fmcore.flow.errors import one_line

WEIGHTS = "diffusion_pytorch_model.safetensors"


def need_files(paths: tuple[Path, ...], kind: str) -> None:
    """An `ArtifactError` names the first file that is missing, and says what lies there instead."""
    for path in paths:
        if not path.is_file():
            a = "an" if kind[0] in "AEIO" else "a"
            found = _instead(path, kind)
            raise ArtifactError(f"{path} is missing: expected {a} {kind} saved by diffusers as safetensors{found}")


def _instead(path: Path, kind: str) -> str:
    """What lies where weights are missing, and how they can be used."""
    stem = WEIGHTS.removesuffix(".safetensors")
    others = sorted(file.name for file in path.parent.glob(f"{stem}*")) if path.name == WEIGHTS else []
    tensors = [name for name in others if name.endswith(".safetensors")]
    if tensors:
        return f"; there is {tensors[0]}: copy it to that name"
    if others:
        load = f"{kind}.from_pretrained('{path.parent}', use_safetensors=False).save_pretrained('{path.parent}')"
        return f"; there is {others[0]}, a pickle, which is not read; if you trust it, convert it: {load}"
    return ""


def fill(network: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Gives a network of diffusers its weights, which were read from `path`.

    Raises:
        ArtifactError: if they are of another network.
    """
    named = dict(tensors)
    try:
        network._fix_state_dict_keys_on_load(named)  # attention weights had other names before 2023
        _check_forms(named, network.state_dict(), path)
        network.load_state_dict(named)
    except RuntimeError as error:
        raise ArtifactError(f"{path} is not of this network: {one_line(error)[:200]}") from None


def _check_forms(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Names the first tensor that is missing, not wanted or of another shape.

    PyTorch's strict loading lets tensors pass that belong to a module which this network leaves out as None.
    """
    for name in sorted(found.keys() | wanted.keys()):
        want, got = (str(tuple(of[name].shape)) if name in of else "none" for of in (wanted, found))
        if want != got:
            raise ArtifactError(f"{path} is not of this network: expected for tensor {name!r} {want}, got {got}")
