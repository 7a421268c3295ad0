"""A model as it lies on disk: a folder that is saved once and loads without the code that trained it.

`config.json` holds the network, data shape, classes and time convention, `model.safetensors` the EMA weights,
`manifest.json` what made it. The manifest comes last, so a folder with one is complete.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmcore.disk.dataset import Encoding, Units, encoding_from, units_from
from fmcore.disk.files import (
    ArtifactError,
    DamagedError,
    read_json,
    read_tensors,
    sha256,
    write_json,
    write_tensors,
)
from fmcore.disk.sums import check, seal
from fmcore.flow.errors import one_line
from fmcore.flow.fields import OURS, Convention, Guidance, VelocityField, guided, network_field
from fmcore.flow.paths import PATHS
from fmcore.models.flow_maps import FlowMap, TakesSecondTime
from fmcore.models.networks import STORED_NETWORKS, Own, StoredNetwork

TIME = "t=0 noise, t=1 data"


@dataclass(frozen=True)
class Trained:
    """A loaded model: its network in evaluation mode and the files that describe it.

    Main arguments:
        network: with the EMA weights.
        shape: of one sample.
        num_classes: None for an unconditional model.
        manifest: what made it.
        digest: SHA-256 of the weights, the model's name in other manifests.

    Other arguments:
        convention: what the network's output means; `field` converts it.
        null_label: the label that stands for no class, if the model was trained with label dropout.
        class_names: of a conditional model whose classes have names.
        units: those of the data, which the network knows standardised; None for images and for sets by formulas.
        encoding: of images whose latents the network makes; None for what it makes itself.
    """

    network: nn.Module
    network_config: StoredNetwork | FlowMap
    shape: tuple[int, ...]
    num_classes: int | None
    manifest: dict[str, Any]
    digest: str
    convention: Convention = OURS
    null_label: int | None = None
    class_names: tuple[str, ...] | None = None
    units: Units | None = None
    encoding: Encoding | None = None

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
    def k(self) -> int | None:
        """The number of Euler steps it was distilled for: it knows only their starts i/k. None for a flow."""
        found: int | None = self.manifest.get("k", self.manifest.get("grid"))  # as version 0.1 called it
        return found

    @property
    def is_paired(self) -> bool:
        """Whether its noise and data were not independent: its velocity then does not give the score."""
        old = self.manifest.get("recipe", {}).get("base", {})  # of version 0.1
        coupling = self.manifest.get("coupling", old.get("coupling", "independent"))
        return bool(self.manifest["rounds"]) or coupling != "independent"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of a sample: where the network makes latents, that of the images they are decoded to."""
        return self.shape if self.encoding is None else self.encoding.shape

    @property
    def makes_images(self) -> bool:
        """Whether its samples are 8-bit images, in [-1, 1]."""
        return len(self.sample_shape) == 3 and self.units is None

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device


def save_model(
    folder: Path,
    network: nn.Module,
    *,
    network_config: StoredNetwork | FlowMap,
    shape: tuple[int, ...],
    num_classes: int | None,
    manifest: Mapping[str, Any],
    convention: Convention = OURS,
    null_label: int | None = None,
    averages: Mapping[float, Mapping[str, Tensor]] | None = None,
    class_names: Sequence[str] | None = None,
    units: Units | None = None,
    encoding: Encoding | None = None,
) -> None:
    """Writes a model folder; an `ArtifactError` for weights that are not finite.

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
        "class_names": None if class_names is None else list(class_names),
        "units": None if units is None else units._asdict(),
    }
    config |= {} if encoding is None else {"encoding": encoding.as_json()}
    write_json(folder / "config.json", config)
    digests = {}
    for file, tensors in files.items():
        write_tensors(folder / file, tensors)
        digests[file] = sha256(folder / file)
    known = dict(digests)
    first = digests.pop("model.safetensors")
    write_json(folder / "manifest.json", {**manifest, "sha256": first, "averages": digests})
    seal(folder, [*files, "config.json", "manifest.json"], {**known, "model.safetensors": first})


def _ema_file(halflife_images: float) -> str:
    return f"ema-{halflife_images:.0f}.safetensors"


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    *,
    ema: float | None = None,
    network: nn.Module | None = None,
) -> Trained:
    """Loads a model folder for sampling.

    Main arguments:
        ema: half-life, in images, of the averaged weights; None for the model's first.
        network: for a model whose network fmcore cannot build (`Own`): one of that class, which gets the weights.

    Raises:
        ArtifactError: if a file is missing or damaged, if the weights are not those of the manifest, or if there
            are none of that half-life.
    """
    folder = Path(folder)
    check(folder, "config.json", "manifest.json")
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
        raise DamagedError(f"{weights} has SHA-256 {digest}, its manifest says {known[name]}")
    try:
        if config["time"] != TIME:
            raise ValueError(f"time is {config['time']!r}, expected {TIME!r}")
        network_config = network_from(config["network"])
        shape = tuple(int(side) for side in config["shape"])
        network = _network(network_config, shape, config["num_classes"], network)
        network.load_state_dict(tensors)
        path = _tupled(config["convention"]["path"])
        convention = Convention(**{**config["convention"], "path": PATHS[path["name"]](**path)})
        null_label = config["null_label"]
        class_names, units = _names(config), units_from(config.get("units"))  # version 0.1 has neither
        encoding = encoding_from(config.get("encoding"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder} cannot be loaded: {one_line(error)}") from None
    network.to(device).eval().requires_grad_(False)
    described = (shape, config["num_classes"], manifest, digest, convention, null_label, class_names, units)
    return Trained(network, network_config, *described, encoding)


def _network(
    config: StoredNetwork | FlowMap, shape: tuple[int, ...], num_classes: int | None, given: nn.Module | None
) -> nn.Module:
    if given is None:
        return config.build(shape, num_classes)
    if not isinstance(config, Own):
        raise ValueError(f"its network is of kind {config.name}, which fmcore builds itself: give none")
    return given


def _names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names, classes = config.get("class_names"), config["num_classes"]
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected the names of {classes} classes, got {names!r}")
    return tuple(names)


def network_from(value: Mapping[str, Any]) -> StoredNetwork | FlowMap:
    """The network configuration that `dataclasses.asdict` wrote, back from JSON."""
    if value["name"] == FlowMap.name:
        inner = network_from(value["inner"])
        if not isinstance(inner, TakesSecondTime):
            raise ValueError(f"a flow map of a {inner.name}: expected one of an mlp or a unet")
        return FlowMap(inner)
    config: StoredNetwork = STORED_NETWORKS[value["name"]](**_tupled(value))
    return config


def _tupled(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
