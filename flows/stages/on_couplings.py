"""What `reflow` and `distill` share: the couplings of a teacher, and a network that is to learn from them."""

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


class Lesson(NamedTuple):
    """A model about to learn from couplings.

    Main arguments:
        teacher: the model whose weights it starts from.
        start: what is trained: the teacher's network, or another with its weights if they fit.
        pairs: the couplings.
        made: the couplings' manifest.
        origin: where the model comes from, for its own manifest.
    """

    teacher: Trained
    start: Trained
    pairs: Coupling
    made: dict[str, Any]
    origin: dict[str, Any]


def lesson(
    params: Params,
    name: str,
    init: str,
    round_name: str,
    section: Reflow | Distill,
    images: int,
    *,
    as_map: bool = False,
) -> Generator[Event, None, Lesson]:
    """Sets up model `name`, with the weights of model `init`, to train on the couplings of a round.

    Main arguments:
        as_map: whether its network takes a second time.

    Raises:
        ArtifactError: if the couplings are not of the model's shape or lack labels it needs.
    """
    device, folder = device_of(params), layout.couplings(round_name)
    parts, made = map_pairs(folder)
    held = sum(column.nbytes for part in parts for column in part if column is not None)
    # Without the longest, a second copy is made beside the first.
    fits = held * (2 if section.drop_longest else 1) <= room(device)
    # If the model to start from made the couplings, take the weights that made them.
    ema = made["teacher"]["ema"] if made["teacher"]["model"] == init else None
    teacher = load_model(layout.model(init), device, ema=ema)
    if parts[0].x0.shape[1:] != teacher.shape:
        raise ArtifactError(
            f"{folder} holds samples of shape {tuple(parts[0].x0.shape[1:])}, {init} {teacher.shape}"
        )
    start, note = _student(teacher, section, params.seed)
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
    origin = {"init": {"model": init, "sha256": teacher.digest}}
    origin |= {"couplings": {"round": round_name, "teacher": made["teacher"]}}
    return Lesson(teacher, start, pairs, made, origin)


def labelled_for(model: Trained, pairs: Pairs) -> Pairs:
    """The pairs without their labels, if the model has no classes."""
    return pairs if model.num_classes is not None else pairs._replace(label=None)


def _student(teacher: Trained, section: Reflow | Distill, seed: int) -> tuple[Trained, str]:
    """What is trained, the teacher's network or another with its weights if they fit, and a line about {}."""
    teacher = replace(teacher, convention=_trainable(teacher.convention))
    config = section.network or teacher.network_config
    assert not isinstance(config, FlowMap)  # of a student, which teaches nobody
    classes = teacher.num_classes if section.labels == "keep" else None
    if config == teacher.network_config and classes == teacher.num_classes:
        return replace(teacher, null_label=None), "starts from {}'s weights"
    if isinstance(config, Diffusers):
        config = replace(config, config={**config.config, "num_class_embeds": classes})
    network = initialised(config, teacher.shape, classes, seed).to(teacher.device)
    if transfer(network, teacher.network):
        convention, note = teacher.convention, "starts from {}'s weights, in a network that differs"
    else:
        convention, note = OURS, "starts anew: its network has another architecture than {}'s"
    return replace(
        teacher,
        network=network,
        network_config=config,
        num_classes=classes,
        convention=convention,
        null_label=None,
    ), note


def _as_map(start: Trained, seed: int) -> Trained:
    """The model with a second time."""
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
