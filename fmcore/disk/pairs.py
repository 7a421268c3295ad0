"""Stored pairs: a folder of fixed-size shards and a `manifest.json` with a checksum for each.

The manifest comes last, so a folder with one is complete. Each shard carries its own checksum, too: after a kill,
those that are whole are kept.
"""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmcore.disk.files import ArtifactError, DamagedError, read_json, read_tensors, sha256, write_json
from fmcore.disk.kept import keep_tensors, kept_tensors
from fmcore.disk.sums import check, seal
from fmcore.flow.couplings import Pairs, joined


class Shard(NamedTuple):
    """One shard of the manifest: pairs `start <= i < start + pairs` in `file`."""

    file: str
    start: int
    pairs: int
    sha256: str


def pair_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The bytes of a stored pair; noise of 8-bit samples is kept in half precision."""
    return prod(shape) * (max(2, dtype.itemsize) + dtype.itemsize)


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
    keep_tensors(path, tensors)
    return Shard(path.name, start, len(tensors["x0"]), sha256(path))


def finished_shards(folder: Path) -> dict[int, Shard]:
    """The complete shards of an unfinished folder, by first pair; damaged ones are left out, to be made again."""
    found = {}
    for path in sorted(folder.glob("pairs-*.safetensors")):
        start = path.stem.removeprefix("pairs-")
        try:
            count = len(kept_tensors(path)["x0"])
        except (ArtifactError, KeyError):
            continue
        if start.isdecimal() and path == shard_path(folder, int(start)):
            found[int(start)] = Shard(path.name, int(start), count, sha256(path))
    return found


def seal_pairs(folder: Path, shards: Iterable[Shard], manifest: Mapping[str, Any]) -> None:
    """Completes a folder of pairs with its manifest."""
    rows = sorted(shards, key=lambda shard: shard.start)
    write_json(folder / "manifest.json", {**manifest, "shards": [shard._asdict() for shard in rows]})
    sums = {shard.file: shard.sha256 for shard in rows}
    seal(folder, [*sums, "manifest.json"], sums)


def open_pairs(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Pairs, dict[str, Any]]:
    """Reads all pairs of a folder and its manifest; see `map_pairs`, which leaves them on disk."""
    parts, manifest = map_pairs(folder)
    return joined(parts, device), manifest


def map_pairs(folder: str | Path) -> tuple[tuple[Pairs, ...], dict[str, Any]]:
    """The pairs of a folder, shard by shard and memory-mapped, and its manifest; checks each shard's checksum.

    Raises:
        ArtifactError: if a shard or the manifest is missing or damaged, or if a shard leaves a gap.
    """
    folder = Path(folder)
    check(folder, "manifest.json")
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
        if path != shard_path(folder, shard.start):
            raise ArtifactError(f"{folder}: expected {shard_path(folder, shard.start).name}, got {shard.file}")
        tensors = read_tensors(path)
        if sha256(path) != shard.sha256 or len(tensors["x0"]) != shard.pairs:
            raise DamagedError(f"{path} is damaged: its SHA-256 or length differs from the manifest's")
        parts.append(Pairs(tensors["x0"], tensors["x1"], tensors.get("label")))
        expected += shard.pairs
    if not parts:
        raise ArtifactError(f"{folder} holds no pairs")
    return tuple(parts), manifest
