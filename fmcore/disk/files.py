"""Files: written whole or not at all; an error while reading names the file.

Every file is written to a temporary name, synced and renamed, so a reader sees all of it or nothing. Tensors are
safetensors and the rest is JSON; neither holds a pickle, a time or a host name, and equal content means equal
bytes, since DVC tells versions apart by hashing them.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor


class ArtifactError(ValueError):
    """An artifact on disk is missing, damaged or not what was asked for; the message names the file."""


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file or nothing: temporary name, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{reason}, writing {len(data):,} bytes", str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes sorted, indented JSON through `write_file`."""
    write_file(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; an `ArtifactError` names the file if it is missing or holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: expected a file that a stage of the pipeline writes") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file; its bytes depend on names and values alone."""
    write_file(path, safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; an `ArtifactError` names it if it is missing or damaged."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        return tensors
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: expected a safetensors file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from None


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape and type of each tensor, in words."""
    return {name: f"{tuple(tensor.shape)} of {tensor.dtype}" for name, tensor in tensors.items()}


def check_kinds(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, str]) -> None:
    """An `ArtifactError` names the first tensor that is missing, not wanted, or of another shape or type."""
    found = kinds(tensors)
    for name in sorted(found.keys() | wanted.keys()):
        want, got = wanted.get(name, "none"), found.get(name, "none")
        if want != got:
            raise ArtifactError(f"{path}: expected for tensor {name!r} {want}, got {got}")
