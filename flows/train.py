"""Stage `base`, and the training that all stages share."""

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

from flows import layout
from flows.events import Events, Metrics, ModelReady, Note, Progress
from flows.params import Params
from flows.setup import classes_of, device_of, fresh, prepared
from flows.work import publish, workspace
from fmcore import checkpoint
from fmcore.couplings import COUPLINGS, Flipped, LabelDropout
from fmcore.fields import Convention
from fmcore.networks import initialised
from fmcore.store import Model, read_json, save_model, write_file
from fmcore.teachers import read_teacher
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

# A checkpoint every ten seconds, and rarer where saving one takes so long that it would cost more than that share:
# that of a network of 55 million weights is 0.9 GB. At most ten minutes of work can be lost.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE, CHECKPOINT_AT_MOST = 10.0, 0.02, 600.0
RECORD_STEPS = 50


def base(params: Params, name: str) -> Events:
    """The base flow: data paired with fresh noise, or a diffusion model that exists already."""
    section, device = params.base, device_of(params)
    keys = {"seed", "device", "precision", "compile", "conditional", "flip", "data", "network", "base"}
    recipe = params.model_dump(mode="json", include=keys)
    recipe["checked"] = read_json(layout.CHECKED)
    if section.teacher is not None:
        yield from _adopt(section.teacher, {"teacher": section.teacher, "checked": recipe["checked"]})
        return
    data = params.data.load()
    classes = classes_of(params, data)
    coupling = COUPLINGS[section.coupling](fresh(data, device, labelled=classes is not None))
    null_label = classes if section.label_dropout else None
    if null_label is not None:
        coupling = LabelDropout(coupling, section.label_dropout, null_label)
    objective = flow_objective(
        Flipped(coupling) if params.flip else coupling,
        section.path,
        section.times,
        section.distance,
        batch_size=section.train.batch_size,
        precision=params.precision,
        weighting=section.weighting,
    )
    with workspace("base", recipe) as work:
        network = initialised(params.network, data.shape, classes, params.seed).to(device)
        like = Model(network, params.network, data.shape, classes, {}, "", Convention(section.path), null_label)
        yield prepared(params, like, section.train.images, training=True)
        state = new_state(network, section.train)
        yield from run_training("base", work, state, objective, section.train, params.seed)
        yield from finish(
            "base", work, state, section.train, like, {"stage": "base", "recipe": recipe, "rounds": 0}
        )


def _adopt(folder: str, recipe: dict[str, Any]) -> Events:
    """Publishes the model in `folder` as the base."""
    teacher = read_teacher(folder)
    with workspace("base", recipe) as work:
        save_model(
            work / "out",
            teacher.network,
            network_config=teacher.network_config,
            shape=teacher.shape,
            num_classes=teacher.num_classes,
            convention=teacher.convention,
            manifest={"stage": "base", "recipe": recipe, "rounds": 0, "images_seen": 0},
        )
        yield Note(f"base: {folder} taken as it is; it predicts {teacher.convention.predicts}")
        yield from _publish("base", work, [])


def run_training(
    name: str,
    work: Path,
    state: TrainState,
    objective: Objective,
    config: TrainConfig,
    seed: int,
    stop: int | None = None,
) -> Events:
    """Trains `state` to the end, or to step `stop`, from the newest checkpoint in `work`; keeps the curve."""
    if not state.step:
        for line in checkpoint.restore(state, work):
            yield Note(line)
        if state.step:
            yield Note(f"{name}: going on from step {state.step} of {config.steps}")
    curve = [record for record in _read_curve(work) if record.step <= state.step]
    total = config.steps * config.batch_size
    yield Progress(f"train {name}", state.step * config.batch_size, total)
    saved, pause = time.monotonic(), CHECKPOINT_SECONDS
    for record in train(state, objective, config, seed=seed, every=RECORD_STEPS, stop=stop):
        curve.append(record)
        yield Progress(f"train {name}", record.images, total)
        yield Metrics(record.images, {"loss": record.loss, "grad_norm": record.grad_norm, "lr": record.lr})
        began = time.monotonic()
        if began - saved > pause and state.step < config.steps:
            # The curve first: a checkpoint never lacks the records up to its step.
            write_file(work / "curve.json", json.dumps(curve).encode())
            checkpoint.save(state, work)
            saved = time.monotonic()
            needed = (saved - began) / CHECKPOINT_SHARE
            pause = min(max(CHECKPOINT_SECONDS, needed), CHECKPOINT_AT_MOST)
    write_file(work / "curve.json", json.dumps(curve).encode())


def _read_curve(work: Path) -> list[Record]:
    path = work / "curve.json"
    return [Record(*row) for row in json.loads(path.read_bytes())] if path.exists() else []


def finish(
    name: str, work: Path, state: TrainState, config: TrainConfig, like: Model, manifest: dict[str, Any]
) -> Events:
    """Publishes the averaged weights as a model folder, and the curve."""
    further = {
        halflife: {key: value.clone() for key, value in averaged(state, which).state_dict().items()}
        for which, halflife in enumerate(config.ema_halflife_images)
        if which
    }
    save_model(
        work / "out",
        averaged(state),
        network_config=like.network_config,
        shape=like.shape,
        num_classes=like.num_classes,
        convention=like.convention,
        null_label=like.null_label,
        averages=further,
        manifest={**manifest, "images_seen": config.steps * config.batch_size},
    )
    yield from _publish(name, work, _read_curve(work))


def _publish(name: str, work: Path, curve: list[Record]) -> Events:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *Record._fields])
    writer.writerows([name, *record] for record in curve)
    write_file(layout.curve(name), text.getvalue().encode())
    publish(work / "out", layout.model(name))
    yield ModelReady(name, layout.model(name))
