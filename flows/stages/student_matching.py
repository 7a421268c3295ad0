"""How `distill` trains a student on its pairs, and from some step on also by matching its ends to data."""

from collections.abc import Generator
from dataclasses import asdict
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch

from flows import layout
from flows.events import Event, Events, Note
from flows.params.schema import Params
from flows.stages.training import resumed, run_training
from flows.workshop.setup import fresh
from flows.workshop.workspace import started_again
from fmcore.disk import checkpoint
from fmcore.disk.dataset import load_dataset
from fmcore.disk.kept import keep, kept
from fmcore.endings.maps import MapEnding
from fmcore.endings.matched import Matched
from fmcore.endings.spaces import SPACES, Hidden, Labelled, chosen, embedding
from fmcore.endings.target import target_of
from fmcore.flow import rng
from fmcore.flow.couplings import Coupling, Independent
from fmcore.flow.fields import mean_velocity
from fmcore.flow.pixels import floats
from fmcore.flow.ranks import barrier, ranks
from fmcore.flow.speed import prepare
from fmcore.flow.training import TrainState
from fmcore.models.folder import Trained, load_model

ENDS, DATA = 1000, 1500  # samples that `auto` compares
SHOWN = 4  # spaces that the log names


def train_matched(
    params: Params,
    name: str,
    start: Trained,
    pairs: Coupling,
    ending: Matched | MapEnding,
    work: Path,
    state: TrainState,
) -> Generator[Event, None, dict[str, Any]]:
    """Trains student `name`, from the newest checkpoint in `work`; returns what the manifest says of the matching.

    Raises:
        ArtifactError: if there is a checkpoint of the matching, but the file with its spaces is missing.
    """
    config, dataset, match = params.distill_of(name).train, load_dataset(layout.DATASET), ending.match
    assert match is not None
    if match.real > len(dataset.x1):
        yield Note(
            f"{name}: in each step {match.real} of the {len(dataset.x1)} samples are drawn, some repeatedly"
        )
    objective = partial(
        ending.objective,
        pairs,
        batch_size=config.batch_size,
        precision=params.precision,
        convention=start.convention,
    )
    first = ceil(match.start * config.steps)
    yield from resumed(name, work, state, config)
    if state.step < first:
        yield from run_training(name, work, state, objective(None), config, params.seed, stop=first)
        if ranks().leads:
            checkpoint.save(state, work)
    base = load_model(layout.model("base"), start.device)
    prepare(base.network, params.precision, "off", work=0, training=False)
    data = fresh(dataset, start.device, labelled=start.num_classes is not None)
    clip = dataset.bin_width is not None  # of images, which have a range
    spaces = match.spaces
    if spaces == "auto":
        path = work / "spaces.json"
        if ranks().leads and not path.exists():
            if state.step > first:
                raise started_again(path)
            ends = _ends(params, start, pairs, clip=clip)
            yield from _choose(name, path, base, ends, _some(data, start.device), params.precision)
        barrier()
        spaces = tuple(SPACES[space["name"]](**space) for space in kept(path))
    embed = embedding(spaces, base, params.precision)
    target = target_of(embed, data, flip=params.flip, clip=clip, device=start.device)
    yield from run_training(name, work, state, objective(target), config, params.seed)
    return {"base": base.digest, "spaces": [asdict(space) for space in spaces]}


def _choose(name: str, path: Path, base: Trained, ends: Labelled, data: Labelled, precision: str) -> Events:
    """Chooses and stores the spaces that tell the student's ends from data best as the matching begins."""
    choice = chosen(base, ends, data, precision)
    largest = sorted(choice.energies.items(), key=lambda item: -item[1])[:SHOWN]
    told = ", ".join(f"{value:.3g} in {_place(space)}" for space, value in largest)
    places = " and in ".join(map(_place, choice.spaces))
    yield Note(f"{name}: its ends differ from data by {told}; they are matched in {places}")
    keep(path, [asdict(space) for space in choice.spaces])


def _place(space: Hidden) -> str:
    return f"{space.block} at t = {space.t:g}{', averaged over positions' if space.pooled else ''}"


@torch.no_grad()
def _ends(params: Params, start: Trained, pairs: Coupling, *, clip: bool) -> Labelled:
    """The ends of one step of the student from noise."""
    x0, _, label = pairs(ENDS, rng.generator(params.seed, "spaces", 0, start.device))
    start.network.eval()
    t = torch.zeros(len(x0), device=start.device)
    ends = x0 + mean_velocity(start.field(params.precision), x0, t, torch.ones_like(t), label)
    return ends.clamp(-1, 1) if clip else ends, label


def _some(data: Independent, device: torch.device) -> Labelled:
    """Data from all over the set."""
    index = torch.linspace(0, len(data) - 1, min(DATA, len(data))).round().long().to(data.x1.device)
    label = None if data.label is None else data.label[index].to(device)
    return floats(data.x1[index].to(device)), label
