"""What `reflow` and `distill` share: the couplings of a round, and the network that is trained on them."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from flows import layout
from flows.events import Event, Note
from flows.params.schema import Distill, Params, Reflow
from flows.workshop.setup import device_of, set_up
from fmcore.disk.files import ArtifactError
from fmcore.disk.pairs import map_pairs
from fmcore.flow.couplings import Coupling, Pairs, Sharded, Stored, joined, without_longest
from fmcore.flow.fields import OURS, Convention
from fmcore.flow.speed import room
from fmcore.models.flow_maps import FlowMap, TakesSecondTime, with_second_time
from fmcore.models.folder import Trained, load_model
from fmcore.models.networks import Diffusers, initialised, transfer


class Setup(NamedTuple):
    """What a training on couplings starts with.

    Main arguments:
        init: the model whose weights it starts from.
        start: the model to train. It has the network of `init`, or another one with those weights if they fit.
        pairs: the couplings.
        manifest: the couplings' manifest.
        origin: where the model comes from, for its own manifest.
    """

    init: Trained
    start: Trained
    pairs: Coupling
    manifest: dict[str, Any]
    origin: dict[str, Any]


def set_up_training(
    params: Params,
    name: str,
    init: str,
    round_name: str,
    section: Reflow | Distill,
    images: int,
    *,
    as_map: bool = False,
) -> Generator[Event, None, Setup]:
    """Sets up model `name` for a training on the couplings of a round, from the weights of model `init`.

    Main arguments:
        as_map: whether its network takes a second time.

    Raises:
        ArtifactError: if the couplings are not of the model's shape or lack labels it needs.
    """
    device, folder = device_of(params), layout.couplings(round_name)
    parts, manifest = map_pairs(folder)
    held = sum(column.nbytes for part in parts for column in part if column is not None)
    # Without the longest, a second copy is made beside the first.
    fits = held * (2 if section.drop_longest else 1) <= room(device)
    # If the model to start from made the couplings, take the weights that made them.
    ema = manifest["teacher"]["ema"] if manifest["teacher"]["model"] == init else None
    model = load_model(layout.model(init), device, ema=ema)
    if parts[0].x0.shape[1:] != model.shape:
        raise ArtifactError(
            f"{folder} holds samples of shape {tuple(parts[0].x0.shape[1:])}, {init} {model.shape}"
        )
    start, note = _network_to_train(model, section, params.seed)
    if as_map:
        start = _as_map(start, params.seed)
    yield Note(f"{name}: {note.format(init)}")
    yield set_up(params, start, images, training=True)
    if start.num_classes is not None and parts[0].label is None:
        raise ArtifactError(f"{folder} holds no labels, but {name} is conditional: set its labels to drop")
    parts = tuple(labelled_for(start, part) for part in parts)
    if not fits:
        yield Note(f"{name}: {held / 1e9:.1f} GB of pairs stay on disk and are read as they are drawn")
    # No variable holds all pairs: it would keep the longest in memory, too.
    pairs = without_longest(Stored(joined(parts, device)) if fits else Sharded(parts), section.drop_longest)
    origin = {"init": {"model": init, "sha256": model.digest}}
    origin |= {"couplings": {"round": round_name, "teacher": manifest["teacher"]}}
    return Setup(model, start, pairs, manifest, origin)


def labelled_for(model: Trained, pairs: Pairs) -> Pairs:
    """The pairs without their labels, if the model has no classes."""
    return pairs if model.num_classes is not None else pairs._replace(label=None)


def _network_to_train(init: Trained, section: Reflow | Distill, seed: int) -> tuple[Trained, str]:
    """The model to train, and a line on where its weights come from, with {} for the name of `init`.

    Its network is that of `init`, or another one with those weights if they fit.
    """
    init = replace(init, convention=_trainable(init.convention))
    config = section.network or init.network_config
    assert not isinstance(config, FlowMap)  # a flow map is a student, and no model starts from a student
    classes = init.num_classes if section.labels == "keep" else None
    if config == init.network_config and classes == init.num_classes:
        return replace(init, null_label=None), "starts from {}'s weights"
    if isinstance(config, Diffusers):
        config = replace(config, config={**config.config, "num_class_embeds": classes})
    network = initialised(config, init.shape, classes, seed).to(init.device)
    if transfer(network, init.network):
        convention, note = init.convention, "starts from {}'s weights, in a network that differs"
    else:
        convention, note = OURS, "starts anew: its network has another architecture than {}'s"
    return replace(
        init,
        network=network,
        network_config=config,
        num_classes=classes,
        convention=convention,
        null_label=None,
    ), note


def _as_map(start: Trained, seed: int) -> Trained:
    """The model, its network with a second time."""
    config = start.network_config
    if not isinstance(config, TakesSecondTime):
        raise ValueError(f"a {config.name} takes no second time: expected a network that is an mlp or a unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = with_second_time(start.network).to(start.device)
    return replace(start, network=network, network_config=FlowMap(config))


def _trainable(convention: Convention) -> Convention:
    """The convention in which a network of the given one learns a rectified flow.

    Near t = 0 predicted noise says next to nothing of the data, which a one-step model needs just there. So a
    network that predicts noise is trained, from its weights on, to predict v (docs/LOG.md has the figures).
    """
    return Convention(convention.path, "v" if convention.predicts == "noise" else convention.predicts)
