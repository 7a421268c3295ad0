"""Stages `reflow@ROUND` and `distill`: training on the couplings that a teacher induced.

They differ from each other in the times they train at, and from the base in the pairs they draw and where their
weights start; everything else is `flows.train.run_training`.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flows import layout
from flows.events import Events, Note, Progress
from flows.params import Distill, Mix, Params, Reflow
from flows.setup import device_of, fresh, prepared
from flows.train import finish, run_training
from flows.work import workspace
from fmcore import checkpoint
from fmcore.couplings import (
    Coupling,
    Flipped,
    Mixture,
    Pairs,
    Sharded,
    Slerped,
    Stored,
    joined,
    without_longest,
)
from fmcore.fields import OURS, Convention, network_field
from fmcore.losses import Matching
from fmcore.networks import Diffusers, initialised, transferred
from fmcore.paths import LINEAR
from fmcore.pixels import floats
from fmcore.reflow import invert_data
from fmcore.solvers import SOLVERS
from fmcore.speed import room
from fmcore.store import (
    ArtifactError,
    Model,
    load_model,
    map_pairs,
    open_pairs,
    read_json,
    read_tensors,
    write_tensors,
)
from fmcore.times import KGrid, Times
from fmcore.training import Objective, TrainConfig, TrainState, averaged, flow_objective, new_state


def reflow(params: Params, name: str) -> Events:
    """Reflow round `name`: its teacher's weights, trained on its teacher's couplings."""
    section, config = params.reflow, params.train_of(name)
    yield from _on_couplings(
        params,
        f"reflow@{name}",
        name,
        init=section.rounds[name].teacher,
        couplings=name,
        section=section,
        mix=section.mix,
        times=section.times,
        weighting=section.weighting,
        config=config,
    )


def distill(params: Params, name: str) -> Events:
    """The k-step student, trained at the k times its Euler steps start from."""
    section = params.distill
    yield from _on_couplings(
        params,
        "distill",
        "student",
        init=section.init,
        couplings=section.couplings,
        section=section,
        mix=None,
        times=KGrid(section.k),
        weighting="none",
        config=section.train,
        matching=section.match,
    )


def _on_couplings(
    params: Params,
    stage: str,
    name: str,
    *,
    init: str,
    couplings: str,
    section: Reflow | Distill,
    mix: Mix | None,
    times: Times,
    weighting: str,
    config: TrainConfig,
    matching: Matching | None = None,
) -> Events:
    """Trains model `name` from the weights of model `init` on the couplings of round `couplings`."""
    device = device_of(params)
    inputs = [layout.model(init), layout.couplings(couplings)]
    sections = {
        "match": matching,
        "times": times,
        "distance": section.distance,
        "train": config,
        "mix": mix,
        "network": section.network,
    }
    recipe: dict[str, Any] = {key: value and asdict(value) for key, value in sections.items()}
    recipe |= {"weighting": weighting, "labels": section.labels, "drop_longest": section.drop_longest}
    recipe["checked"] = read_json(layout.CHECKED)
    recipe |= params.model_dump(mode="json", include={"seed", "device", "precision", "compile", "flip"})
    parts, made = map_pairs(inputs[1])
    held = sum(column.nbytes for part in parts for column in part if column is not None)
    # Those without the longest are picked from all of them.
    fits = held * (2 if section.drop_longest else 1) <= room(device)
    # The weights that made the couplings, if they are of the model to start from.
    ema = made["teacher"]["ema"] if made["teacher"]["model"] == init else None
    teacher = load_model(inputs[0], device, ema=ema)
    if parts[0].x0.shape[1:] != teacher.shape:
        raise ArtifactError(
            f"{inputs[1]} holds samples of shape {tuple(parts[0].x0.shape[1:])}, {init} {teacher.shape}"
        )
    start, note = _student(teacher, section, params.seed)
    yield Note(f"{name}: {note}")
    yield prepared(params, start, config.images, training=True)
    if start.num_classes is not None and parts[0].label is None:
        raise ArtifactError(f"{inputs[1]} holds no labels, but {name} is conditional: set its labels to drop")
    parts = tuple(_for(start, part) for part in parts)
    if not fits:
        yield Note(f"{name}: {held / 1e9:.1f} GB of pairs stay on disk and are read as they are drawn")
    # No name for all of them, which would keep the longest in memory, too.
    generated = without_longest(Stored(joined(parts, device)) if fits else Sharded(parts), section.drop_longest)

    data: Coupling | None = None
    if matching is not None:
        recipe["data"] = params.model_dump(mode="json")["data"]
        independent = fresh(params.data.load(), device, labelled=start.num_classes is not None)
        data = Flipped(independent) if params.flip else independent

    def objective(real: Pairs | None) -> Objective:
        coupling: Coupling = generated
        if mix is not None and real is not None:
            other = Slerped(Stored(real), mix.slerp) if mix.slerp else Stored(real)
            coupling = Mixture((generated, other), (1 - mix.inverted, mix.inverted), mix.until)
        return flow_objective(
            Flipped(coupling) if params.flip else coupling,
            LINEAR,
            times,
            section.distance,
            batch_size=config.batch_size,
            precision=params.precision,
            convention=start.convention,
            weighting=weighting,
            matching=matching,
            real=data,
        )

    with workspace(stage, recipe, inputs) as work:
        state = new_state(start.network.train().requires_grad_(True), config)
        if mix is None or not mix.inverted:
            yield from run_training(name, work, state, objective(None), config, params.seed)
        else:
            real = _for(start, open_pairs(inputs[1] / layout.INVERTED, device)[0])
            couple = made["recipe"]["couple"]

            def inverted(network: nn.Module) -> Iterator[Pairs]:
                return invert_data(
                    network_field(network, params.precision, start.convention),
                    floats(real.x1),
                    grid=torch.tensor(made["grid"], dtype=torch.float64),
                    solver=SOLVERS[couple["solver"]],
                    batch=made["batch"],
                    label=real.label,
                    device=device,
                )

            yield from _mixed(name, work, state, objective, real, inverted, mix, config, params.seed)
        manifest: dict[str, Any] = {
            "stage": stage,
            "recipe": recipe,
            "rounds": teacher.manifest["rounds"] + (stage != "distill"),
            "init": {"model": init, "sha256": teacher.digest},
            "couplings": {"round": couplings, "teacher": made["teacher"]},
        }
        if isinstance(times, KGrid):
            manifest["grid"] = times.k
        yield from finish(name, work, state, config, start, manifest)


def _student(teacher: Model, section: Reflow | Distill, seed: int) -> tuple[Model, str]:
    """What is trained, the teacher's network or another with its weights if they fit, and a line that says so."""
    teacher = replace(teacher, convention=_trainable(teacher.convention))
    config = section.network or teacher.network_config
    classes = teacher.num_classes if section.labels == "keep" else None
    if config == teacher.network_config and classes == teacher.num_classes:
        return replace(teacher, null_label=None), "starts from its teacher's weights"
    if isinstance(config, Diffusers):
        config = replace(config, config={**config.config, "num_class_embeds": classes})
    network = initialised(config, teacher.shape, classes, seed).to(teacher.device)
    if transferred(network, teacher.network):
        convention, note = teacher.convention, "starts from its teacher's weights, in a network that differs"
    else:
        convention, note = OURS, "starts anew: its network has another architecture than its teacher's"
    return replace(
        teacher,
        network=network,
        network_config=config,
        num_classes=classes,
        convention=convention,
        null_label=None,
    ), note


def _trainable(convention: Convention) -> Convention:
    """How a network of that convention learns a rectified flow.

    Where there is next to no signal, noise prediction says next to nothing of the data, and a one-step model needs
    it just there. So such a network learns to predict v from its weights on (docs/LOG.md has the figures).
    """
    return Convention(convention.path, "v" if convention.predicts == "noise" else convention.predicts)


def _for(model: Model, pairs: Pairs) -> Pairs:
    """The pairs without their labels, if the model has no classes."""
    return pairs if model.num_classes is not None else pairs._replace(label=None)


def _mixed(
    name: str,
    work: Path,
    state: TrainState,
    objective: Callable[[Pairs], Objective],
    real: Pairs,
    inverted: Callable[[nn.Module], Iterator[Pairs]],
    mix: Mix,
    config: TrainConfig,
    seed: int,
) -> Events:
    """Trains in stretches, each on real data inverted by the model as the stretch before left it.

    A stretch's noise is kept beside the checkpoints, so that a killed run goes on with the same. After `mix.until`
    no real data is drawn, and the last stretch goes to the end.
    """
    stretch = max(1, mix.refresh_images // config.batch_size) if mix.refresh_images else config.steps
    last = ceil(mix.until * config.steps)
    for line in checkpoint.restore(state, work):
        yield Note(line)
    while state.step < config.steps:
        first = min(state.step, last - 1) // stretch * stretch
        kept = work / f"inverted-{first:010d}.safetensors"
        if first and not kept.exists():
            if state.step != first:
                raise ArtifactError(f"{kept} is missing; remove {work} to start this training again")
            parts: list[Tensor] = []
            yield Progress(f"invert {name}", 0, len(real.x1), "pairs")
            for pairs in inverted(averaged(replace(state, network=copy.deepcopy(state.network)))):
                parts.append(pairs.x0)
                yield Progress(f"invert {name}", sum(map(len, parts)), len(real.x1), "pairs")
            write_tensors(kept, {"x0": torch.cat(parts)})
            for old in sorted(work.glob("inverted-*.safetensors"))[: -checkpoint.KEEP]:
                old.unlink()
        x0 = read_tensors(kept)["x0"].to(real.x0.device) if first else real.x0
        stop = first + stretch if first + stretch < last else config.steps
        yield from run_training(name, work, state, objective(real._replace(x0=x0)), config, seed, stop=stop)
        if state.step < config.steps:
            checkpoint.save(state, work)
