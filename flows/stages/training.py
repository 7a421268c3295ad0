"""The training that all stages share: from the newest checkpoint on, to a model folder and its curve."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import layout
from flows.events import Events, ModelReady, Note, Progress, trained
from flows.workshop.workspace import need_space, publish
from fmcore.disk import checkpoint
from fmcore.disk.files import write_file
from fmcore.disk.kept import keep, kept
from fmcore.flow.ranks import ranks
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
    """Trains `state` to the end, or to step `stop`, from the newest checkpoint in `work`; keeps the curve.

    Of several processes the first keeps it, and checkpoints.
    """
    if not state.step:
        yield from resumed(name, work, state, config)
    if not ranks().leads:
        for _ in train(state, objective, config, seed=seed, every=RECORD_STEPS, stop=stop):
            pass
        return
    there = len(list(work.glob("step-*.safetensors")))
    need_space(work, checkpoint.size(state) * (checkpoint.KEEP + 1 - there), f"the checkpoints of {name}")
    curve = _read_curve(work, state.step)
    total = config.steps * config.batch_size
    yield Progress("train", state.step * config.batch_size, total, of=name)
    saved, pause = time.monotonic(), CHECKPOINT_SECONDS
    for record in train(state, objective, config, seed=seed, every=RECORD_STEPS, stop=stop):
        curve.append(record)
        yield Progress("train", record.images, total, of=name)
        yield trained(record.images, record.loss, record.grad_norm, record.lr)
        began = time.monotonic()
        if began - saved > pause and state.step < config.steps:
            _keep_curve(work, state.step, curve)
            checkpoint.save(state, work)
            saved = time.monotonic()
            needed = (saved - began) / CHECKPOINT_SHARE
            pause = min(max(CHECKPOINT_SECONDS, needed), CHECKPOINT_AT_MOST)
    _keep_curve(work, state.step, curve)


def resumed(name: str, work: Path, state: TrainState, config: TrainConfig) -> Events:
    """Loads the newest checkpoint in `work`, if there is one."""
    for line in checkpoint.restore(state, work):
        yield Note(line)
    if state.step:
        yield Note(f"{name}: going on from step {state.step} of {config.steps}")


def _curve_at(work: Path, step: int) -> Path:
    """Each checkpoint has a curve up to its step, which is written first."""
    return work / f"curve-{step:010d}.json"


def _keep_curve(work: Path, step: int, curve: Sequence[Record]) -> None:
    path = _curve_at(work, step)
    keep(path, curve)
    older = [other for other in sorted(work.glob("curve-*.json")) if other.name <= path.name]
    for old in older[: -checkpoint.KEEP - 1]:  # one more than checkpoints, for the next one is not there yet
        old.unlink()


def _read_curve(work: Path, step: int) -> list[Record]:
    path = _curve_at(work, step)
    return [Record(*row) for row in kept(path)] if path.exists() else []


def finish(
    name: str, work: Path, state: TrainState, config: TrainConfig, like: Trained, manifest: dict[str, Any]
) -> Events:
    """Publishes the averaged weights as a model folder, and the curve; the first of several processes does."""
    if not ranks().leads:
        return
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
    yield from publish_model(name, work, config.steps)


def publish_model(name: str, work: Path, steps: int = 0) -> Events:
    """Moves a finished model, and the curve of its training of so many steps, to their places."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *Record._fields])
    writer.writerows([name, *record] for record in _read_curve(work, steps))
    write_file(layout.curve(name), text.getvalue().encode())
    publish(work / "out", layout.model(name))
    yield ModelReady(name, layout.model(name))
