"""Stage `reflow@ROUND`: a round's rectified flow."""

import copy
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from flows import layout
from flows.events import Events, Progress
from flows.params.schema import Params
from flows.stages.on_couplings import Setup, labelled_for, set_up_training
from flows.stages.training import finish, resumed, run_training
from flows.workshop.entry import Stage
from flows.workshop.workspace import made_by, started_again, workspace
from fmcore.disk import checkpoint
from fmcore.disk.kept import keep_tensors, kept_tensors
from fmcore.disk.pairs import open_pairs
from fmcore.flow.couplings import Coupling, Flipped, Mixture, Pairs, Slerped, Stored
from fmcore.flow.fields import network_field
from fmcore.flow.paths import LINEAR
from fmcore.flow.pixels import floats
from fmcore.flow.ranks import barrier, ranks
from fmcore.flow.training import Objective, TrainState, flow_objective, new_state, take_average
from fmcore.ode.reflow import invert_data
from fmcore.ode.solvers import SOLVERS


def reflow(params: Params, stage: Stage) -> Events:
    """The round's model: its teacher's weights, trained on its teacher's couplings."""
    name, section = stage.name, params.reflow
    config, init = params.train_of(name), section.rounds[name].teacher
    setup = yield from set_up_training(params, name, init, name, section, config.images)
    with workspace(stage, params) as work:
        state = new_state(setup.start.network.train().requires_grad_(True), config)
        if section.mix.inverted:
            yield from _with_real(setup, params, name, work, state)
        else:
            yield from run_training(name, work, state, _objective(setup, params, name, None), config, params.seed)
        about = {"rounds": setup.init.manifest["rounds"] + 1}
        yield from finish(name, work, state, config, setup.start, made_by(params, stage) | setup.origin | about)


def _objective(setup: Setup, params: Params, name: str, real: Pairs | None) -> Objective:
    """The flow-matching loss on the pairs, mixed with `real`, pairs of real data, if given."""
    section, mix = params.reflow, params.reflow.mix
    coupling: Coupling = setup.pairs
    if real is not None:
        other = Slerped(Stored(real), mix.slerp) if mix.slerp else Stored(real)
        coupling = Mixture((setup.pairs, other), (1 - mix.inverted, mix.inverted), mix.until)
    return flow_objective(
        Flipped(coupling) if params.flip else coupling,
        LINEAR,
        section.times,
        section.distance,
        batch_size=params.train_of(name).batch_size,
        precision=params.precision,
        convention=setup.start.convention,
        weighting=section.weighting,
    )


def _with_real(setup: Setup, params: Params, name: str, work: Path, state: TrainState) -> Events:
    """Trains in stretches: the first on the stored inverted data, each later one on data the model inverts anew.

    A stretch's noise is kept beside the checkpoints, so that a killed run goes on with the same noise. After
    `mix.until` no real data is drawn, and the last stretch goes to the end.
    """
    config, mix = params.train_of(name), params.reflow.mix
    real = labelled_for(setup.start, open_pairs(layout.couplings(name) / layout.INVERTED, setup.start.device)[0])
    stretch = max(1, mix.refresh_images // config.batch_size) if mix.refresh_images else config.steps
    last = ceil(mix.until * config.steps)
    yield from resumed(name, work, state, config)
    while state.step < config.steps:
        first = min(state.step, last - 1) // stretch * stretch
        path = work / f"inverted-{first:010d}.safetensors"
        if first and ranks().leads and not path.exists():
            if state.step != first:
                raise started_again(path)
            yield from _invert(setup, params, name, state, real, path)
        barrier()
        x0 = kept_tensors(path)["x0"].to(real.x0.device) if first else real.x0
        stop = first + stretch if first + stretch < last else config.steps
        objective = _objective(setup, params, name, real._replace(x0=x0))
        yield from run_training(name, work, state, objective, config, params.seed, stop=stop)
        if state.step < config.steps and ranks().leads:
            checkpoint.save(state, work)


def _invert(setup: Setup, params: Params, name: str, state: TrainState, real: Pairs, path: Path) -> Events:
    """Carries real data to noise with the present averaged weights, and stores the noise."""
    network = take_average(replace(state, network=copy.deepcopy(state.network)))
    pairs = invert_data(
        network_field(network, params.precision, setup.start.convention),
        floats(real.x1),
        grid=torch.tensor(setup.manifest["grid"], dtype=torch.float64),
        solver=SOLVERS[setup.manifest["solver"]],
        batch=setup.manifest["batch"],
        label=real.label,
        device=setup.start.device,
    )
    parts: list[Tensor] = []
    yield Progress("invert", 0, len(real.x1), "pairs", of=name)
    for part in pairs:
        parts.append(part.x0)
        yield Progress("invert", sum(map(len, parts)), len(real.x1), "pairs", of=name)
    keep_tensors(path, {"x0": torch.cat(parts)})
    older = [other for other in sorted(path.parent.glob("inverted-*.safetensors")) if other.name <= path.name]
    for old in older[: -checkpoint.KEEP]:
        old.unlink()
