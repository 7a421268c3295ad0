"""Files of unfinished work: each carries its own checksum, so a stage that resumes uses none that has changed.

The checksum is of the file's name, too: one that was renamed is not taken for another. It lies in the file, so no
kill between two writes can part them: in JSON under a key of its own, in a safetensors file in the header.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from fmcore.disk.files import ArtifactError, DamagedError, read_json, read_tensors, write_json, write_tensors

Blocks = Sequence[Sequence[Any]]  # the row after each block of rows, and the block's SHA-256


def keep(path: Path, value: Any) -> None:
    """Writes a JSON value with its checksum."""
    write_json(path, {"sha256": _of_value(path.name, value), "value": value})


def kept(path: Path) -> Any:
    """Reads what `keep` wrote; an `ArtifactError` names a file that is missing or does not fit its checksum."""
    found = read_json(path)
    if found.keys() != {"sha256", "value"} or found["sha256"] != _of_value(path.name, found["value"]):
        raise DamagedError(f"{path} is damaged: its checksum differs")
    return found["value"]


def _of_value(name: str, value: Any) -> str:
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
    except (ValueError, TypeError) as error:  # what JSON reads and does not write
        raise ArtifactError(f"{name}: expected what JSON can hold: {error}") from None
    return hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()


def keep_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file with its checksum."""
    write_tensors(path, tensors, _of_tensors(path.name, tensors))


def kept_tensors(path: Path) -> dict[str, Tensor]:
    """Reads what `keep_tensors` wrote; errors as `kept`."""
    tensors = read_tensors(path)
    with safetensors.safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get("sha256")
    if expected != _of_tensors(path.name, tensors):
        raise DamagedError(f"{path} is damaged: its checksum differs")
    return tensors


def _of_tensors(name: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(name.encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu()
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def is_whole(path: Path) -> bool:
    """Whether the file was written by `keep` or `keep_tensors` and fits its checksum."""
    try:
        if path.suffix == ".json":
            kept(path)
        else:
            kept_tensors(path)
    except ArtifactError:
        return False
    return True


def with_block(blocks: Blocks, rows: Tensor, stop: int) -> Blocks:
    """The blocks of a tensor that is filled row by row, and one more: from where they end to row `stop`."""
    first = blocks[-1][0] if blocks else 0
    if stop == first:
        return [*blocks]
    return [*blocks, [stop, hashlib.sha256(_bytes(rows[first:stop])).hexdigest()]]


def are_whole(blocks: Blocks, rows: Tensor, count: int) -> bool:
    """Whether the first `count` rows are those that the blocks, as JSON gave them back, were made of."""
    again: Blocks = []
    for block in blocks:
        stop = block[0]
        if not (again[-1][0] if again else 0) < stop <= len(rows):
            return False
        again = with_block(again, rows, stop)
        if again[-1][1] != block[1]:
            return False
    return (again[-1][0] if again else 0) == count
