"""The training that all stages share: from the newest checkpoint on, to a model folder and its curve."""

import csv
import io
import time
from pathlib import Path
from typing import Any

from flows import layout
from flows.events import Events, ModelReady, Note, Progress, trained
from flows.workshop.workspace import need_space, publish
from fmcore.disk import checkpoint
from fmcore.disk.files import write_file
from fmcore.disk.kept import keep, kept
from fmcore.flow.training import (
    Objective,
    Record,
    TrainConfig,
    TrainState,
    take_average,
    train,
)
from fmcore.models.folder import Trained, save_model

# A checkpoint is saved every ten seconds, or more rarely if saving would take more than this share of the time
# (one of 55 million weights has 0.9 GB). At most ten minutes of work can be lost.
CHECKPOINT_SECONDS, CHECKPOINT_SHARE, CHECKPOINT_AT_MOST = 10.0, 0.02, 600.0
RECORD_STEPS = 50


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
        yield from resumed(name, work, state, config)
    need_space(work, checkpoint.size(state) * (checkpoint.KEEP + 1), f"the checkpoints of {name}")
    curve = [record for record in _read_curve(work) if record.step <= state.step]
    total = config.steps * config.batch_size
    yield Progress("train", state.step * config.batch_size, total, of=name)
    saved, pause = time.monotonic(), CHECKPOINT_SECONDS
    for record in train(state, objective, config, seed=seed, every=RECORD_STEPS, stop=stop):
        curve.append(record)
        yield Progress("train", record.images, total, of=name)
        yield trained(record.images, record.loss, record.grad_norm, record.lr)
        began = time.monotonic()
        if began - saved > pause and state.step < config.steps:
            # The curve first: a checkpoint never lacks the records up to its step.
            keep(work / "curve.json", curve)
            checkpoint.save(state, work)
            saved = time.monotonic()
            needed = (saved - began) / CHECKPOINT_SHARE
            pause = min(max(CHECKPOINT_SECONDS, needed), CHECKPOINT_AT_MOST)
    keep(work / "curve.json", curve)


def resumed(name: str, work: Path, state: TrainState, config: TrainConfig) -> Events:
    """Loads the newest checkpoint in `work`, if there is one."""
    for line in checkpoint.restore(state, work):
        yield Note(line)
    if state.step:
        yield Note(f"{name}: going on from step {state.step} of {config.steps}")


def _read_curve(work: Path) -> list[Record]:
    path = work / "curve.json"
    return [Record(*row) for row in kept(path)] if path.exists() else []


def finish(
    name: str, work: Path, state: TrainState, config: TrainConfig, like: Trained, manifest: dict[str, Any]
) -> Events:
    """Publishes the averaged weights as a model folder, and the curve."""
    further = {
        halflife: {key: value.clone() for key, value in take_average(state, which).state_dict().items()}
        for which, halflife in enumerate(config.ema_halflife_images)
        if which
    }
    save_model(
        work / "out",
        take_average(state),
        network_config=like.network_config,
        shape=like.shape,
        num_classes=like.num_classes,
        convention=like.convention,
        null_label=like.null_label,
        averages=further,
        class_names=like.class_names if like.num_classes is not None else None,
        units=like.units,
        encoding=like.encoding,
        manifest={**manifest, "images_seen": config.steps * config.batch_size},
    )
    yield from publish_model(name, work)


def publish_model(name: str, work: Path) -> Events:
    """Moves a finished model and its curve to their places."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *Record._fields])
    writer.writerows([name, *record] for record in _read_curve(work))
    write_file(layout.curve(name), text.getvalue().encode())
    publish(work / "out", layout.model(name))
    yield ModelReady(name, layout.model(name))
