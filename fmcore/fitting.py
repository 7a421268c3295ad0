"""`fit`: a flow from a network and data, for programs; the pipeline has stages of its own."""

import copy
import warnings
from collections.abc import Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmcore.flow.couplings import COUPLINGS, Coupling, Independent, Indexed, LabelDropout, Pairs, Stored, joined
from fmcore.flow.fields import Convention
from fmcore.flow.losses import Distance
from fmcore.flow.named import named
from fmcore.flow.paths import CONTINUOUS_PATHS, ContinuousPath
from fmcore.flow.speed import prepare
from fmcore.flow.times import TimeSampler
from fmcore.flow.training import Objective, TrainConfig, flow_objective, new_state, take_average, train
from fmcore.model import Model
from fmcore.models.networks import MLP, NETWORKS, Network, Own, UNet, UNet1D, initialised
from fmcore.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    Array = Tensor | np.ndarray[Any, Any]

LARGE = 10.0  # a mean or deviation from which on values are likely to be a mistake


def fit(
    network: "nn.Module | Model | Network | str",
    data: Any,
    *,
    labels: "Array | None" = None,
    x0: "Array | None" = None,
    num_classes: int | None = None,
    label_dropout: float = 0.0,
    path: ContinuousPath | str = "linear",
    coupling: str = "independent",
    times: TimeSampler | str = "uniform",
    distance: Distance | str = "squared",
    images: int = 500_000,
    batch_size: int = 256,
    lr: float = 1e-3,
    precision: str = "auto",
    device: torch.device | str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """Trains a flow: a first one on data, a rectified one on the pairs that another flow induced.

    Main arguments:
        network: a name, a configuration like `MLP(width=256)`, a module of (x, t) or (x, t, label), which is
            trained in place, or a `Model`, whose copy is trained on.
        data: (N, *D) floats, of images in [-1, 1], or 8-bit pixels; a torch Dataset of x or (x, label), read as it
            is drawn from; a DataLoader, read once; a `Coupling`; or `Pairs`, e.g. `Model.pairs(50_000, 16)`.
        labels: (N,) classes 0, 1, ...; `num_classes` says how many a Dataset has, which is not read to count them.
        x0: (M, *D) samples to start from instead of noise.
        label_dropout: the share of samples whose class is hidden, for classifier-free guidance.

    Other arguments:
        path, coupling, times, distance: by their names in params.yaml, or objects.
        images, lr: samples seen, repeats included, and AdamW's rate, which warms up over a twentieth of them and
            falls to 0 along a cosine; weights are averaged with a half-life of a fortieth.

    Raises:
        TypeError, ValueError: for what cannot be trained on or with; the line says what to give.
    """
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    drawn, classes = _coupling(data, labels, x0, num_classes, coupling, place)
    shape = tuple(drawn(1, torch.Generator(place).manual_seed(0)).x1.shape[1:])
    on: ContinuousPath = named(path, CONTINUOUS_PATHS, "path")
    start = _start(network, shape, classes, seed, place, Convention(on))
    if label_dropout:
        drawn, start = _dropping(drawn, label_dropout, start)
    size = min(batch_size, images)
    objective = flow_objective(drawn, on, times, distance, batch_size=size, precision=precision)
    config = TrainConfig(images, size, lr, 0.0, images // 20, ema_halflife_images=(images / 40,))
    prepare(start.network, precision, "off", work=0.0, training=True)
    trained = _trained(start.network, objective, config, seed, progress)
    rounds = start.manifest.get("rounds", 0) + isinstance(data, Pairs)
    made = {
        "coupling": "pairs" if isinstance(data, Pairs | Coupling) else coupling,
        "rounds": rounds,
        "seed": seed,
    }
    made |= {"source": "noise" if x0 is None else "samples", "images_seen": config.steps * size}
    return replace(start, network=trained, manifest=made, convention=Convention(on))


def _dropping(drawn: Coupling, share: float, start: Model) -> tuple[Coupling, Model]:
    if start.num_classes is None:
        raise ValueError("label_dropout: expected 0 for data without labels")
    return LabelDropout(drawn, share, start.num_classes), replace(start, null_label=start.num_classes)


def _trained(
    network: nn.Module, objective: Objective, config: TrainConfig, seed: int, progress: bool
) -> nn.Module:
    """The network with averaged weights."""
    state = new_state(network.requires_grad_(True), config)
    bar = Progress("fit", config.steps * config.batch_size, "samples") if progress else None
    for record in train(state, objective, config, seed=seed):
        if bar:
            bar.to(record.images)
    if bar:
        bar.close()
    return take_average(state)


def _start(
    network: "nn.Module | Model | Network | str",
    shape: tuple[int, ...],
    classes: int | None,
    seed: int,
    device: torch.device,
    convention: Convention,
) -> Model:
    """A model that knows nothing yet, or a copy of the one to go on from."""
    if isinstance(network, Model):
        if (network.shape, network.num_classes) != (shape, classes):
            wanted, there = (network.shape, network.num_classes), (shape, classes)
            raise ValueError(f"network: expected data of shape and classes {wanted}, as the model's, got {there}")
        if network.convention != convention:  # its weights would mean something else
            raise ValueError(f"path: expected that of the model, {network.convention}, got {convention}")
        return replace(network, network=copy.deepcopy(network.network).to(device))
    if isinstance(network, nn.Module):
        kind = type(network)
        built, config = network.to(device), Own(f"{kind.__module__}:{kind.__qualname__}")
        return Model(built, config, shape, classes, {}, "")
    chosen = named(network, NETWORKS, "network") if isinstance(network, str) else network
    if not isinstance(chosen, MLP | UNet | UNet1D):
        got = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
        raise TypeError(f"network: expected a name ({', '.join(NETWORKS)}), a module or a Model, got {got}")
    return Model(initialised(chosen, shape, classes, seed).to(device), chosen, shape, classes, {}, "")


def _coupling(
    data: Any,
    labels: "Array | None",
    x0: "Array | None",
    num_classes: int | None,
    coupling: str,
    device: torch.device,
) -> tuple[Coupling, int | None]:
    """Where the pairs come from, and how many classes there are."""
    given = {"labels": labels is not None, "x0": x0 is not None, "coupling": coupling != "independent"}
    if isinstance(data, torch.utils.data.DataLoader):
        data, labels = _read(data, labels)
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return _fresh(_tensor("data", data), labels, x0, num_classes, coupling)
    if further := [name for name, there in given.items() if there]:
        raise ValueError(f"{further[0]}: expected none beside a {type(data).__name__}, which brings its own")
    if isinstance(data, Pairs):
        return Stored(joined([data], device)), _classes(data.label, num_classes)
    if isinstance(data, Coupling):
        return data, num_classes
    if (
        isinstance(data, Sized)
        and hasattr(data, "__getitem__")
        and not isinstance(data, str | list | tuple | dict)
    ):
        return Indexed(data), num_classes
    wanted = "an array, a Dataset, a DataLoader, Pairs or a Coupling"
    raise TypeError(f"data: expected {wanted}, got {type(data).__name__}")


def _fresh(
    x1: Tensor, labels: "Array | None", x0: "Array | None", num_classes: int | None, coupling: str
) -> tuple[Coupling, int | None]:
    """Data paired anew at each step."""
    if not len(x1):
        raise ValueError("data: expected samples, got none")
    _warn(x1)
    label = None if labels is None else _tensor("labels", labels).long()
    if label is not None and label.shape != x1.shape[:1]:
        raise ValueError(f"labels: expected one for each of {len(x1)} samples, got {tuple(label.shape)}")
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling: expected one of {', '.join(COUPLINGS)}, got {coupling!r}")
    fresh = Independent(x1, label, source=None if x0 is None else _tensor("x0", x0))
    return COUPLINGS[coupling](fresh), _classes(label, num_classes)


def _tensor(name: str, x: "Array") -> Tensor:
    """An array as a tensor; floats become float32."""
    try:
        found = x if isinstance(x, Tensor) else torch.from_numpy(x.copy())
    except (TypeError, AttributeError) as error:
        raise TypeError(f"{name}: expected a tensor or a NumPy array of numbers, {error}") from None
    return found.float() if found.is_floating_point() else found


def _read(loader: "torch.utils.data.DataLoader[Any]", labels: "Array | None") -> tuple[Tensor, "Array | None"]:
    """All that a loader yields, x or (x, label)."""
    xs, found = [], []
    for batch in loader:
        x, label = (*batch, None)[:2] if isinstance(batch, list | tuple) else (batch, None)
        if not isinstance(x, Tensor):
            raise TypeError(f"data: expected a loader of tensors x or (x, label), got {type(x).__name__}")
        xs.append(x)
        found += [] if label is None else [label]
    if not xs:
        raise ValueError("data: the loader yields nothing")
    return torch.cat(xs), torch.cat(found) if found and labels is None else labels


def _classes(label: Tensor | None, num_classes: int | None) -> int | None:
    """How many there are: as said, or as there are labels."""
    if label is None:
        return num_classes
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= (high + 1 if num_classes is None else num_classes):
        raise ValueError(f"labels: expected 0 to {(num_classes or high + 1) - 1}, got {low} to {high}")
    return high + 1 if num_classes is None else num_classes


def _warn(x1: Tensor) -> None:
    """Says what is likely to be a mistake in the scale of the data: noise has mean 0 and deviation 1."""
    if not x1.is_floating_point():
        return
    mean, std = float(x1.mean()), float(x1.std())
    if x1.ndim == 4 and x1.min() >= 0 and x1.max() <= 1:
        told = "images lie in [0, 1], and those of fmcore in [-1, 1]: 2 * x - 1"
    elif abs(mean) > LARGE or not 1 / LARGE < std < LARGE:
        has = f"mean {mean:.3g} and deviation {std:.3g}, and noise has 0 and 1"
        told = f"the values have {has}; standardised they train better"
    else:
        return
    warnings.warn(f"data: {told}", stacklevel=5)  # the line that calls `fit`, past `_coupling` and `_fresh`
