"""Files: written whole or not at all; an error while reading names the file.

Every file is written to a temporary name, synced and renamed, so a reader sees all of it or nothing. Tensors are
safetensors and the rest is JSON; neither holds a pickle, a time or a host name, and equal content means equal
bytes, since DVC tells versions apart by hashing them.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor


class ArtifactError(ValueError):
    """An artifact on disk is missing, damaged or not what was asked for; the message names the file."""


class ChangedError(ArtifactError):
    """An artifact needs a file that is no longer the one it was made with."""


class DamagedError(ArtifactError):
    """An artifact is not what was written: its bytes do not fit their checksum, or it cannot be read."""


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file or nothing: temporary name, sync, rename."""
    _write(path, len(data), lambda part: part.write_bytes(data))


def _write(path: Path, size: int, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{reason}, writing {size:,} bytes", str(path)) from None
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
        raise ArtifactError(f"{path} is missing: expected a file of JSON") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits; a `DamagedError` if the disk does not give its bytes."""
    with path.open("rb") as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error.strerror}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], digest: str | None = None) -> None:
    """Writes a safetensors file; its bytes depend on names and values alone, and it copies none of them.

    Main arguments:
        digest: a checksum that its header is to hold.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(part: Path) -> None:
        try:
            safetensors.torch.save_file(whole, part, None if digest is None else {"sha256": digest})
        except safetensors.SafetensorError as error:  # what the system said stands in its text only
            raise OSError(errno.EIO, str(error)) from None

    _write(path, sum(tensor.nbytes for tensor in whole.values()), write)


def mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose values lie in a file, which is made if it is not there.

    A file that is there keeps its values. The system holds as many of them in memory as there is room for.

    Raises:
        OSError: if the disk has no room for the file.
    """
    size = prod(shape) * dtype.itemsize
    with path.open("ab") as file:
        file.truncate(min(size, file.tell()))
        free = shutil.disk_usage(path.parent).free
        if size - file.tell() > free:  # allocating too much would fill the disk before it fails
            reason = f"{os.strerror(errno.ENOSPC)}: {size:,} bytes are needed, {free:,} are free"
            raise OSError(errno.ENOSPC, reason, str(path))
        if size and hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process at once
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
    return torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype).view(shape)


def flush(path: Path) -> None:
    """Waits until what was written into a mapped file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; an `ArtifactError` names it if it is missing or damaged."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        return tensors
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: expected a safetensors file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None


def read_forms(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their values, on the device `meta`; errors as `read_tensors`."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: expected a safetensors file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


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
