"""Stored pairs: a folder of fixed-size shards and a `manifest.json` with a checksum for each.

The manifest comes last, so a folder with one is complete.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256, write_file, write_json
from fmcore.flow.couplings import Pairs, joined


class Shard(NamedTuple):
    """One shard of the manifest: pairs `start <= i < start + pairs` in `file`."""

    file: str
    start: int
    pairs: int
    sha256: str


def shard_path(folder: Path, start: int) -> Path:
    """Where the shard that begins at pair `start` lies."""
    return folder / f"pairs-{start:010d}.safetensors"


def write_shard(folder: Path, start: int, batches: Iterable[Pairs]) -> Shard:
    """Writes batches of pairs as the shard that begins at pair `start`."""
    parts = list(batches)
    tensors = {"x0": torch.cat([p.x0 for p in parts]), "x1": torch.cat([p.x1 for p in parts])}
    labels = [p.label for p in parts if p.label is not None]
    if labels:
        tensors["label"] = torch.cat(labels)
    path = shard_path(folder, start)
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    shard = Shard(path.name, start, len(tensors["x0"]), hashlib.sha256(data).hexdigest())
    write_json(path.with_suffix(".json"), shard._asdict())  # first, so that no shard is without its record
    write_file(path, data)
    return shard


def finished_shards(folder: Path) -> dict[int, Shard]:
    """The complete shards of an unfinished folder, by first pair; damaged ones are left out, to be made again."""
    found = {}
    for path in sorted(folder.glob("pairs-*.json")):
        shard = Shard(**read_json(path))
        if (folder / shard.file).exists() and sha256(folder / shard.file) == shard.sha256:
            found[shard.start] = shard
    return found


def seal_pairs(folder: Path, shards: Iterable[Shard], manifest: Mapping[str, Any]) -> None:
    """Completes a folder of pairs with its manifest, which takes the place of the shards' own records."""
    rows = [shard._asdict() for shard in sorted(shards, key=lambda shard: shard.start)]
    write_json(folder / "manifest.json", {**manifest, "shards": rows})
    for row in rows:
        (folder / str(row["file"])).with_suffix(".json").unlink(missing_ok=True)


def open_pairs(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Pairs, dict[str, Any]]:
    """Reads all pairs of a folder and its manifest; see `map_pairs`, which leaves them on disk."""
    parts, manifest = map_pairs(folder)
    return joined(parts, device), manifest


def map_pairs(folder: str | Path) -> tuple[tuple[Pairs, ...], dict[str, Any]]:
    """The pairs of a folder, shard by shard and memory-mapped, and its manifest; checks each shard's checksum.

    Raises:
        ArtifactError: if a shard is missing, damaged, or leaves a gap.
    """
    folder = Path(folder)
    manifest = read_json(folder / "manifest.json")
    if "solver" not in manifest:  # version 0.1 kept it elsewhere
        manifest["solver"] = manifest.get("recipe", {}).get("couple", {}).get("solver")
    parts: list[Pairs] = []
    expected = 0
    try:
        shards = [Shard(**row) for row in manifest["shards"]]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / 'manifest.json'} does not describe stored pairs: {error}") from None
    for shard in shards:
        path = folder / shard.file
        if shard.start != expected:
            raise ArtifactError(f"{folder}: expected a shard at pair {expected}, got {shard.start}")
        tensors = read_tensors(path)
        if sha256(path) != shard.sha256 or len(tensors["x0"]) != shard.pairs:
            raise ArtifactError(f"{path} is damaged: its SHA-256 or length differs from the manifest's")
        parts.append(Pairs(tensors["x0"], tensors["x1"], tensors.get("label")))
        expected += shard.pairs
    if not parts:
        raise ArtifactError(f"{folder} holds no pairs")
    return tuple(parts), manifest
