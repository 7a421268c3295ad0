"""Stages `base`, `reflow@ROUND` and `distill`: one training, three couplings.

They differ in the pairs they draw, the times they train at and where their weights start; everything else is
`run_training`.
"""

import csv
import io
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows import layout
from flows.events import Events, Metrics, ModelReady, Note, Progress
from flows.params import Params
from flows.setup import classes_of, device_of
from flows.work import publish, workspace
from fmcore import checkpoint
from fmcore.couplings import Independent, Stored
from fmcore.losses import Distance
from fmcore.networks import initialised
from fmcore.paths import PATHS
from fmcore.store import ArtifactError, Model, load_model, open_pairs, read_json, save_model, write_file
from fmcore.times import KGrid, Times
from fmcore.training import (
    Objective,
    Record,
    TrainConfig,
    TrainState,
    averaged,
    flow_objective,
    new_state,
    train,
)

CHECKPOINT_SECONDS = 10.0
RECORD_STEPS = 50


def base(params: Params, name: str) -> Events:
    """The base flow: data paired with independent noise."""
    section, device = params.base, device_of(params)
    recipe = params.model_dump(
        mode="json", include={"seed", "device", "precision", "conditional", "data", "network", "base"}
    )
    recipe["checked"] = read_json(layout.CHECKED)
    data = params.data.load()
    classes = classes_of(params, data)
    label = None if classes is None or data.label is None else data.label.to(device)
    objective = flow_objective(
        Independent(data.x1.to(device), label),
        PATHS[section.path],
        section.times,
        section.distance,
        batch_size=section.train.batch_size,
        precision=params.precision,
    )
    with workspace("base", recipe) as work:
        network = initialised(params.network, data.shape, classes, params.seed).to(device)
        state = new_state(network, section.train)
        yield from run_training("base", work, state, objective, section.train, params.seed)
        like = Model(network, params.network, data.shape, classes, {}, "")
        yield from _finish(
            "base", work, state, section.train, like, {"stage": "base", "recipe": recipe, "rounds": 0}
        )


def reflow(params: Params, name: str) -> Events:
    """Reflow round `name`: its teacher's weights, trained on its teacher's couplings."""
    section, config = params.reflow, params.train_of(name)
    yield from _on_couplings(
        params,
        f"reflow@{name}",
        name,
        init=section.rounds[name].teacher,
        couplings=name,
        times=section.times,
        distance=section.distance,
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
        times=KGrid(section.k),
        distance=section.distance,
        config=section.train,
    )


def _on_couplings(
    params: Params,
    stage: str,
    name: str,
    *,
    init: str,
    couplings: str,
    times: Times,
    distance: Distance,
    config: TrainConfig,
) -> Events:
    """Trains model `name` from the weights of model `init` on the couplings of round `couplings`."""
    device = device_of(params)
    inputs = [layout.model(init), layout.couplings(couplings)]
    parts = {"times": times, "distance": distance, "train": config}
    recipe: dict[str, Any] = {key: asdict(value) for key, value in parts.items()}
    recipe |= params.model_dump(mode="json", include={"seed", "device", "precision"})
    start = load_model(inputs[0], device)
    pairs, made = open_pairs(inputs[1], device)
    if pairs.x0.shape[1:] != start.shape:
        raise ArtifactError(
            f"{inputs[1]} holds samples of shape {tuple(pairs.x0.shape[1:])}, {init} {start.shape}"
        )
    path = PATHS[params.base.path]
    objective = flow_objective(
        Stored(pairs), path, times, distance, batch_size=config.batch_size, precision=params.precision
    )
    with workspace(stage, recipe, inputs) as work:
        state = new_state(start.network.train().requires_grad_(True), config)
        yield from run_training(name, work, state, objective, config, params.seed)
        manifest: dict[str, Any] = {
            "stage": stage,
            "recipe": recipe,
            "rounds": start.manifest["rounds"] + (stage != "distill"),
            "init": {"model": init, "sha256": start.digest},
            "couplings": {"round": couplings, "teacher": made["teacher"]},
        }
        if isinstance(times, KGrid):
            manifest["grid"] = times.k
        yield from _finish(name, work, state, config, start, manifest)


def run_training(
    name: str, work: Path, state: TrainState, objective: Objective, config: TrainConfig, seed: int
) -> Events:
    """Trains `state` to the end from the newest checkpoint in `work`, and keeps the curve beside it."""
    for line in checkpoint.restore(state, work):
        yield Note(line)
    if state.step:
        yield Note(f"{name}: going on from step {state.step} of {config.steps}")
    curve = [record for record in _read_curve(work) if record.step <= state.step]
    total = config.steps * config.batch_size
    yield Progress(f"train {name}", state.step * config.batch_size, total)
    saved = time.monotonic()
    for record in train(state, objective, config, seed=seed, every=RECORD_STEPS):
        curve.append(record)
        yield Progress(f"train {name}", record.images, total)
        yield Metrics(record.images, {"loss": record.loss, "grad_norm": record.grad_norm, "lr": record.lr})
        if time.monotonic() - saved > CHECKPOINT_SECONDS and state.step < config.steps:
            # The curve first: a checkpoint never lacks the records up to its step.
            write_file(work / "curve.json", json.dumps(curve).encode())
            checkpoint.save(state, work)
            saved = time.monotonic()
    write_file(work / "curve.json", json.dumps(curve).encode())


def _read_curve(work: Path) -> list[Record]:
    path = work / "curve.json"
    return [Record(*row) for row in json.loads(path.read_bytes())] if path.exists() else []


def _finish(
    name: str, work: Path, state: TrainState, config: TrainConfig, like: Model, manifest: dict[str, Any]
) -> Events:
    """Publishes the EMA weights as a model folder, and the curve."""
    out = work / "out"
    save_model(
        out,
        averaged(state),
        network_config=like.network_config,
        shape=like.shape,
        num_classes=like.num_classes,
        manifest={**manifest, "images_seen": config.steps * config.batch_size},
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *Record._fields])
    writer.writerows([name, *record] for record in _read_curve(work))
    write_file(layout.curve(name), text.getvalue().encode())
    publish(out, layout.model(name))
    yield ModelReady(name, layout.model(name))
