"""Artifacts on disk: models and stored pairs, as safetensors and JSON.

A model is a folder: `config.json` (network, data shape, classes, time convention), `model.safetensors` (EMA
weights) and `manifest.json` (what made it). Stored pairs are a folder of fixed-size shards and a
`manifest.json` with a checksum for each. Neither holds a pickle, a time or a host name, and equal content
means equal bytes, since DVC tells versions apart by hashing them.

Every file is written to a temporary name, synced and renamed, so a reader sees all of it or nothing; the
manifest comes last, so a folder with one is complete.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fmcore import rng
from fmcore.couplings import Pairs, joined
from fmcore.fields import OURS, Convention, Guidance, VelocityField, guided, network_field
from fmcore.networks import STORED_NETWORKS, Diffusers, Network
from fmcore.paths import PATHS
from fmcore.reflow import draw
from fmcore.solvers import seeded, solve, solver, steps_for
from fmcore.speed import moved
from fmcore.times import uniform_grid

TIME = "t=0 noise, t=1 data"
SAMPLE_BATCH = 1000


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
    """Reads a JSON object; an `ArtifactError` names the file if it is missing or no such thing."""
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


# --- models -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A loaded model: its network in evaluation mode and the files that describe it.

    Main arguments:
        network: with the EMA weights.
        shape: of one sample.
        num_classes: None for an unconditional model.
        manifest: what made it; `manifest["grid"]` is k for a student that knows the times i/k only.
        digest: SHA-256 of the weights, the model's name in other manifests.

    Other arguments:
        convention: what the network's output means; `field` converts it.
        null_label: the label that stands for none, if the model was trained with label dropout.
    """

    network: nn.Module
    network_config: Network | Diffusers
    shape: tuple[int, ...]
    num_classes: int | None
    manifest: dict[str, Any]
    digest: str
    convention: Convention = OURS
    null_label: int | None = None

    def field(self, precision: str = "auto", guidance: Guidance | None = None) -> VelocityField:
        """The model's velocity field on the linear path, whatever path it was trained on.

        Raises:
            ValueError: for guidance of a model that was not trained with label dropout.
        """
        return self.guide(network_field(self.network, precision, self.convention), guidance)

    def guide(self, field: VelocityField, guidance: Guidance | None) -> VelocityField:
        """The field under guidance, if there is any."""
        if guidance is None:
            return field
        if self.null_label is None:
            raise ValueError("guidance was asked for, but this model was trained without label dropout")
        return guided(field, guidance, self.null_label)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    def sample(
        self,
        count: int,
        nfe: int,
        *,
        solver_name: str = "euler",
        seed: int = 0,
        label: int | None = None,
        guidance: Guidance | None = None,
        precision: str = "auto",
    ) -> Tensor:
        """Draws `count` samples with `nfe` network evaluations each; sample i depends on (seed, i) alone.

        Main arguments:
            count: samples wanted.
            nfe: evaluations a sample; a multiple of the solver's evaluations a step, and of two under guidance,
                whose interval may make it fewer.
            label: the class of all samples; None draws classes uniformly for a conditional model.

        Returns:
            (count, *shape) on the CPU: images in [-1, 1] up to the model's error, or points.

        Raises:
            ValueError: if the solver is unknown or cannot spend `nfe`, or the label is out of range.
        """
        options = {"seed": seed, "label": label, "guidance": guidance, "precision": precision}
        return torch.cat(list(self.batches(count, nfe, solver_name=solver_name, **options)))  # type: ignore[arg-type]

    def batches(
        self,
        count: int,
        nfe: int,
        *,
        solver_name: str = "euler",
        seed: int = 0,
        label: int | None = None,
        guidance: Guidance | None = None,
        precision: str = "auto",
        purpose: str = "sample",
    ) -> Iterator[Tensor]:
        """What `sample` returns, a batch at a time; `purpose` names the noise, `evaluate` that of the scores."""
        labels = self._labels(count, seed, label)
        method = solver(solver_name)
        k = self.manifest.get("grid")
        if k is not None and (solver_name != "euler" or nfe < 1 or k % nfe):
            raise ValueError(
                f"this model was distilled for {k} Euler steps: expected euler and an nfe that divides {k}, "
                f"got {solver_name} and {nfe}"
            )
        field = self.field(precision, guidance)
        grid = uniform_grid(steps_for(method, nfe, passes=1 if guidance is None else 2))
        for first in range(0, count, SAMPLE_BATCH):
            size = min(SAMPLE_BATCH, count - first)
            x0, _ = draw(first, size, shape=self.shape, seed=seed, purpose=purpose)
            part = None if labels is None else moved(labels[first : first + size], self.device)
            walker = seeded(method, seed, first)
            yield solve(field, moved(x0, self.device), grid, walker, part).cpu()

    def _labels(self, count: int, seed: int, label: int | None) -> Int64[Tensor, " count"] | None:
        if self.num_classes is None:
            if label is not None:
                raise ValueError(f"label {label} was asked for, but this model was trained without classes")
            return None
        if label is None:
            return rng.integers(seed, "sample/label", 0, count, self.num_classes)
        if not 0 <= label < self.num_classes:
            raise ValueError(f"label must lie in 0..{self.num_classes - 1}, got {label}")
        return torch.full((count,), label)


def save_model(
    folder: Path,
    network: nn.Module,
    *,
    network_config: Network | Diffusers,
    shape: tuple[int, ...],
    num_classes: int | None,
    manifest: Mapping[str, Any],
    convention: Convention = OURS,
    null_label: int | None = None,
    averages: Mapping[float, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes a model folder; refuses weights that are not finite.

    Main arguments:
        averages: further weights by their EMA half-life, which `load_model` can be asked for.
    """
    files = {"model.safetensors": network.state_dict()}
    files |= {_ema_file(halflife): dict(weights) for halflife, weights in (averages or {}).items()}
    for tensors in files.values():
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ArtifactError(f"{folder}: weight {name} is not finite, so the model was not written")
    config = {
        "network": asdict(network_config),
        "shape": list(shape),
        "num_classes": num_classes,
        "null_label": null_label,
        "convention": asdict(convention),
        "time": TIME,
    }
    write_json(folder / "config.json", config)
    digests = {}
    for file, tensors in files.items():
        write_tensors(folder / file, tensors)
        digests[file] = sha256(folder / file)
    first = digests.pop("model.safetensors")
    write_json(folder / "manifest.json", {**manifest, "sha256": first, "averages": digests})


def _ema_file(halflife_images: float) -> str:
    return f"ema-{halflife_images:.0f}.safetensors"


def load_model(folder: str | Path, device: torch.device | str = "cpu", *, ema: float | None = None) -> Model:
    """Loads a model folder for sampling.

    Main arguments:
        ema: half-life, in images, of the averaged weights; None for the model's first.

    Raises:
        ArtifactError: if a file is missing, damaged, the weights are not those of the manifest, or there are no
            weights of that half-life.
    """
    folder = Path(folder)
    config, manifest = read_json(folder / "config.json"), read_json(folder / "manifest.json")
    known = {"model.safetensors": manifest.get("sha256"), **manifest.get("averages", {})}
    name = "model.safetensors" if ema is None else _ema_file(ema)
    if name not in known:
        others = ", ".join(sorted(known.keys() - {"model.safetensors"})) or "none"
        raise ArtifactError(
            f"{folder} holds no weights with an EMA half-life of {ema} images; further ones: {others}"
        )
    weights = folder / name
    tensors = read_tensors(weights)
    digest = sha256(weights)
    if digest != known[name]:
        raise ArtifactError(f"{weights} has SHA-256 {digest}, its manifest says {known[name]}")
    try:
        if config["time"] != TIME:
            raise ValueError(f"time is {config['time']!r}, expected {TIME!r}")
        network_config = network_from(config["network"])
        shape = tuple(int(side) for side in config["shape"])
        network = network_config.build(shape, config["num_classes"])
        network.load_state_dict(tensors)
        path = _tupled(config["convention"]["path"])
        convention = Convention(**{**config["convention"], "path": PATHS[path["name"]](**path)})
        null_label = config["null_label"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder} does not describe a model of this version: {error}") from None
    network.to(device).eval().requires_grad_(False)
    return Model(network, network_config, shape, config["num_classes"], manifest, digest, convention, null_label)


def network_from(value: Mapping[str, Any]) -> Network | Diffusers:
    """The network configuration that `dataclasses.asdict` wrote, back from JSON."""
    config: Network | Diffusers = STORED_NETWORKS[value["name"]](**_tupled(value))
    return config


def _tupled(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


# --- stored pairs -----------------------------------------------------------------------------------------


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
    write_json(path.with_suffix(".json"), shard._asdict())  # before the shard, so that none is without
    write_file(path, data)
    return shard


def finished_shards(folder: Path) -> dict[int, Shard]:
    """The whole shards of an unfinished folder, by first pair; damaged ones are left out, to be made again."""
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
