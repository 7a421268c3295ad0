"""Feature extractors for Frechet distances: NCHW uint8 -> (N, D) float32.

    classifier, rotation, views   a small network fitted on the training split (`fmcore.score.feature_net`)
    efficientnet-lite0      ImageNet features from a package, along the data's leading directions
                            (`fmcore.score.efficientnet`): for colour photographs
    inception-v3-compat     FID proper (`fmcore.score.inception`): made for colour photographs, slow without a GPU
    pixels                  the pixels themselves, for tests and closed forms
    random                  the small network, unfitted: nearly blind to missing modes, so use it beside another
    MODULE:FUNCTION         any function that can be imported, the current folder included; it takes uint8 NCHW
                            pixels on the device of the scores and returns (N, D) floats

A folder that records an extractor holds the SHA-256 of the file that it was made from. For a function this is its
source file only, not what that file imports or reads.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fmcore.disk.files import (
    ArtifactError,
    ChangedError,
    check_kinds,
    kinds,
    read_json,
    read_tensors,
    sha256,
    write_json,
    write_tensors,
)
from fmcore.disk.sums import check
from fmcore.flow.errors import one_line
from fmcore.flow.pixels import dequantise
from fmcore.flow.rng import generator
from fmcore.score.efficientnet import (
    EFFICIENTNET,
    EFFICIENTNET_DIMS,
    PROJECTED,
    directions,
    find_efficientnet,
    load_efficientnet,
    projected,
)
from fmcore.score.feature_net import FIT_DIMS, FeatureNet, Fitting, Views, network_of
from fmcore.score.frechet import stats
from fmcore.score.inception import INCEPTION_DIMS, INCEPTION_SHA, find_inception, load_inception

FITTED = ("classifier", "rotation", "views")
UNFITTED = ("inception-v3-compat", EFFICIENTNET, "pixels", "random")
EXTRACTORS = (*FITTED, *UNFITTED, "none")  # none: points are compared as they are
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # MODULE:FUNCTION
PROJECTION = "projection.safetensors"
MOST = 100_000  # classes, features or pixels a side that a manifest, which may be a stranger's, can claim
_NETS = {"classifier": "cnn", "rotation": "rot", "views": "views", "random": "random"}  # and the dimensions


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Main arguments:
        name: of its features, e.g. `cnn64`.
        digest: SHA-256 of its weights or source, "" if it has neither.
        features: uint8 NCHW -> (N, dims).
        logits: class scores from features, of extractors that have classes.
        distance: what the Frechet distance on its features is called, `fid` for the published Inception alone.
    """

    name: str
    dims: int
    digest: str
    features: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None = None
    distance: str = "fd"

    @property
    def metric(self) -> str:
        """The name of the distance on its features."""
        return f"{self.distance}_{self.name}"

    def __call__(self, pixels: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Features of 8-bit images."""
        with torch.inference_mode():
            return self.features(pixels)


def dims_of(name: str, shape: tuple[int, ...]) -> int | None:
    """How many features an extractor makes of images of that shape; None for a function: only a call tells."""
    if FUNCTION.fullmatch(name):
        return None
    known = {"inception-v3-compat": INCEPTION_DIMS, EFFICIENTNET: EFFICIENTNET_DIMS, "pixels": prod(shape)}
    return known.get(name, FIT_DIMS)


def digest_of(
    kind: str, weights: str | None, download: bool, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> str | None:
    """SHA-256 of the file an extractor is made from: a network's weights, a function's source; else None.

    Raises:
        ValueError: as `find_inception` and `find_efficientnet`, and if a function makes no features of two images
            of that shape.
    """
    if kind == "inception-v3-compat":
        return sha256(find_inception(weights, download))
    if kind == EFFICIENTNET:
        return sha256(find_efficientnet())
    return _tried(kind, shape, device).digest if FUNCTION.fullmatch(kind) else None


def save_extractor(folder: Path, kind: str, fitted: Fitting, pixels: UInt8[Tensor, "N C H W"]) -> float:
    """Sets the scale of a fitted network, writes it to `folder`, and returns its held-out accuracy."""
    network = fitted.network.eval()
    accuracy = fitted.held_out_accuracy(network)
    about = {"held_out_accuracy": round(accuracy, 6), "held_out_images": fitted.held_out}
    _save_network(folder, kind, network, torch.split(pixels, 500), tuple(pixels.shape[1:]), about)
    return accuracy


def _save_network(
    folder: Path,
    kind: str,
    network: FeatureNet | Views,
    data: Iterable[Tensor],
    shape: tuple[int, ...],
    about: dict[str, Any],
) -> None:
    """Gives the features of the data unit variance, averaged over dimensions, and writes the network."""
    batches = list(data)
    for part in network.parts:
        with torch.inference_mode():
            whole = reduce(add, (stats(part.features(pixels)) for pixels in batches))
        variance = float(whole.covariance.diagonal().mean())
        part.scale.fill_(variance**-0.5 if variance else 1.0)
    write_tensors(folder / "extractor.safetensors", network.state_dict())
    about |= {"classes": sum(part.head.out_features for part in network.parts), "dims": network.dims}
    _record(folder, kind, sha256(folder / "extractor.safetensors"), shape, about)


def _record(folder: Path, kind: str, digest: str, shape: tuple[int, ...], about: dict[str, Any]) -> None:
    # Without the path of the weights, which differs between machines.
    write_json(
        folder / "manifest.json", {**about, "extractor": kind, "sha256": digest, "image_shape": list(shape)}
    )


def adopt(
    kind: str,
    folder: Path,
    shape: tuple[int, ...],
    data: Iterable[Tensor],
    device: torch.device | str = "cpu",
    weights: str | None = None,
    download: bool = False,
) -> Extractor:
    """Makes the extractor of that name, which needs no fitting, and records it in `folder`.

    Main arguments:
        shape: (C, H, W) of the images.
        data: batches of the data's images; `random` takes its scale from them, efficientnet-lite0 its directions.
        weights, download: see `find_inception`.

    Raises:
        ValueError: for a kind that must be fitted or is unknown, for missing or wrong weights, and for a function
            that cannot be imported or makes no features of two images.
    """
    about: dict[str, Any] = {}
    if kind == "inception-v3-compat":
        path = find_inception(weights, download)
        made = _inception(path, sha256(path), device)
    elif kind == "pixels":
        made = _pixels(shape, device)
    elif kind == EFFICIENTNET:
        write_tensors(folder / PROJECTION, directions(load_efficientnet(device), data))
        _record(folder, kind, sha256(folder / PROJECTION), shape, {})
        return load_extractor(folder, device)
    elif kind == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = FeatureNet(shape, 1).to(device).eval()
        _save_network(folder, kind, network, data, shape, about)
        return load_extractor(folder, device)
    elif FUNCTION.fullmatch(kind):
        made = _tried(kind, shape, device)
        about = {"dims": made.dims}
    else:
        raise ValueError(f"extractor: expected one of {', '.join(UNFITTED)} or MODULE:FUNCTION, got {kind!r}")
    _record(folder, kind, made.digest, shape, about)
    return made


def load_extractor(
    folder: Path, device: torch.device | str = "cpu", weights: str | None = None, function: str | None = None
) -> Extractor:
    """The extractor that the features stage fitted or adopted.

    Main arguments:
        weights: where Inception's file lies, None for the usual cache.
        function: MODULE:FUNCTION, if the extractor is a function. The folder may be a stranger's, so a function
            that only its manifest names is not imported.

    Raises:
        ArtifactError: if the manifest is malformed, or its file or function is missing or not the recorded one.
        ValueError: as `adopt`.
    """
    file = folder / "manifest.json"
    check(folder, file.name)
    manifest = read_json(file)
    try:
        kind, digest = str(manifest["extractor"]), str(manifest["sha256"])
        shape = _whole(file, "image_shape", manifest["image_shape"], 3)
        if function is None and FUNCTION.fullmatch(kind):
            raise ArtifactError(f"{folder}: made with {kind}, run only if named; expected --extractor {kind}")
        if function is not None and function != kind:
            raise ArtifactError(f"{folder}: expected features of {function}, got those of {kind}")
        if kind == "pixels":
            return _pixels(shape, device)
        if FUNCTION.fullmatch(kind):
            call, path = _imported(kind)
            _check_digest(path, digest, ChangedError)
            return _function(kind, call, digest, _whole(file, "dims", [manifest["dims"]])[0], device)
        if kind == "inception-v3-compat":
            path = find_inception(weights)
            _check_digest(path, digest, ChangedError)
            return _inception(path, digest, device)
        if kind == EFFICIENTNET:
            _check_digest(folder / PROJECTION, digest)
            return _efficientnet(folder / PROJECTION, digest, shape, device)
        if kind not in _NETS:
            raise ArtifactError(f"{file}: expected one of {', '.join(FITTED + UNFITTED)}, got {kind!r}")
        path = folder / "extractor.safetensors"
        _check_digest(path, digest)
        (classes,) = _whole(file, "classes", [manifest["classes"]])
        (dims,) = _whole(file, "dims", [manifest.get("dims", FIT_DIMS)])  # version 0.1 says none
        network = network_of(kind, shape, classes, dims)
    except KeyError as error:
        raise ArtifactError(f"{file}: expected a manifest of features, got one without {error}") from None
    tensors = read_tensors(path)
    check_kinds(path, tensors, kinds(network.state_dict()))
    network.load_state_dict(tensors)
    network.to(device).eval()
    logits = network.logits if isinstance(network, FeatureNet) and kind == "classifier" else None
    return Extractor(f"{_NETS[kind]}{dims}", dims, digest, network.features, logits)


def _check_digest(path: Path, digest: str, error: type[ArtifactError] = ArtifactError) -> None:
    found = sha256(path) if path.is_file() else "no file"
    if found != digest:
        raise error(f"{path}: expected the extractor with SHA-256 {digest}, got {found}")


def _whole(file: Path, name: str, values: object, count: int = 1) -> tuple[int, ...]:
    if not isinstance(values, list) or [type(n) is int and 0 < n <= MOST for n in values] != [True] * count:
        raise ArtifactError(f"{file}: expected for {name} {count} of the numbers 1..{MOST}, got {values!r}")
    return tuple(values)


def _inception(path: Path, digest: str, device: torch.device | str) -> Extractor:
    # Other weights than the published ones give numbers that must not be taken for the FID.
    published = digest.startswith(INCEPTION_SHA)
    name, distance = ("inception", "fid") if published else (f"inception_{digest[:8]}", "fd")
    return Extractor(name, INCEPTION_DIMS, digest, *load_inception(path, device), distance=distance)


def _efficientnet(path: Path, digest: str, shape: tuple[int, ...], device: torch.device | str) -> Extractor:
    if shape[0] not in (1, 3):
        raise ArtifactError(f"{path.parent}: {EFFICIENTNET} takes images of 1 or 3 channels, got {shape[0]}")
    along = read_tensors(path)
    check_kinds(path, along, PROJECTED)
    if not all(tensor.isfinite().all() for tensor in along.values()) or not along["basis"].any():
        raise ArtifactError(f"{path}: expected finite directions that are not all 0")
    features = projected(load_efficientnet(device), along, device)
    return Extractor(f"efficientnet{EFFICIENTNET_DIMS}", EFFICIENTNET_DIMS, digest, features)


def _pixels(shape: tuple[int, ...], device: torch.device | str) -> Extractor:
    dims = prod(shape)
    return Extractor(f"pixels{dims}", dims, "", lambda pixels: dequantise(pixels.to(device)).flatten(1))


def _imported(name: str) -> tuple[Callable[[Tensor], Tensor], Path]:
    """The function of that name and its source file."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for good: the function may import later
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"extractor {name}: {module_name} needs {error.name}, which is not there") from None
        raise ValueError(f"extractor {name}: no module {error.name!r}, in {os.getcwd()} or installed") from None
    except Exception as error:
        raise ValueError(f"extractor {name}: {module_name} cannot be imported: {_line(error)}") from None
    function = getattr(module, function_name, None)
    if not inspect.isfunction(function):
        got = "none of that name" if function is None else f"a {type(function).__name__}"
        raise ValueError(
            f"extractor {name}: expected a function {function_name!r} in {module.__file__}, got {got}"
        )
    source = inspect.getsourcefile(inspect.unwrap(function))
    if source is None:
        raise ValueError(f"extractor {name}: expected a function with a source file, to tell its versions apart")
    return function, Path(source)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _tried(name: str, shape: tuple[int, ...], device: torch.device | str) -> Extractor:
    """The extractor of a function, after a call with two images."""
    function, source = _imported(name)
    two = torch.randint(256, (2, *shape), generator=generator(0, "features/trial")).to(torch.uint8)
    try:
        with torch.inference_mode():
            found = function(two.to(device))
    except Exception as error:
        raise ValueError(f"extractor {name}: failed on two images of shape {shape}: {_line(error)}") from None
    dims = found.shape[1] if isinstance(found, Tensor) and found.ndim == 2 else 0
    _check_features(name, found, 2, dims)
    if not found.isfinite().all():
        raise ValueError(f"extractor {name}: expected finite features, got {found.flatten()[:4].tolist()}, ...")
    return _function(name, function, sha256(source), dims, device)


def _function(
    name: str, function: Callable[[Tensor], Tensor], digest: str, dims: int, device: torch.device | str
) -> Extractor:
    def features(pixels: Tensor) -> Tensor:
        found = function(pixels.to(device))
        _check_features(name, found, len(pixels), dims)
        return found.to(device, torch.float32)

    return Extractor(name.partition(":")[2], dims, digest, features)


def _check_features(name: str, found: object, count: int, dims: int) -> None:
    right = isinstance(found, Tensor) and found.is_floating_point() and tuple(found.shape) == (count, dims)
    if not right or not dims:
        got = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        wanted = f"({count}, {dims or 'D'}) for {count} images"
        raise ValueError(f"extractor {name}: expected a tensor of floats, {wanted}, got {got}")
