"""Stages run in the current folder on parameters with small budgets, and what they said."""

import copy
from collections.abc import Iterator

from flows.launch.stages import stage_at, started
from flows.params.reading import load_yaml, validate
from repository import ROOT

BUDGET = {"batch_size": 50, "lr": 2.0e-3, "lr_final": 0.0, "warmup_images": 0, "weight_decay": 0.0}
BUDGET |= {"accumulate": 1, "clip_norm": 1.0, "ema_halflife_images": [500], "ema_rampup": 0.05}


USUAL = {"channels": 1, "size": 8, "fit": "crop", "background": "white", "levels": "auto", "held_out": 0.0}
USUAL |= {"group": None}
REGRESSION = {"name": "regression", "k": 1, "distance": {"name": "pseudo_huber", "scale": 0.00054}}


def small(images=5000, **more):
    return {**BUDGET, "images": images, **more}


def tiny(**changes):
    """The defaults with one round and small budgets, and `changes` by dotted path."""
    raw = copy.deepcopy(load_yaml(ROOT / "presets/digits.yaml"))
    raw["precision"], raw["device"] = "fp32", "cpu"
    raw["network"] |= {"width": 32, "depth": 1}
    raw["features"]["train"] = small(2000)
    for section in ("base", "reflow", "distill"):
        raw[section]["train"] = small()
    raw["couple"] |= {"pairs": 300, "solver": "euler", "nfe": 4, "batch": 100}
    raw["reflow"]["rounds"] = {"r1": {"teacher": "base", "couple": {}, "train": {}}}
    raw["evaluate"] |= {"samples": 200, "batch": 100, "solvers": {"euler": [1, 4]}}
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = raw
        for part in parents:
            at = at[part]
        at[last] = value
    return validate(raw, "test")


def data_of(root, **more):
    """`data` of a folder of images, each key with its usual value."""
    return {"name": "images", "root": str(root), **USUAL, **more}


def points(**changes):
    data = {"name": "eight_gaussians", "count": 5000}
    return tiny(data=data, features__extractor="none", **changes)


def events_of(params, stage) -> Iterator:
    return started(params, stage_at(stage))


def run(params, *stages):
    """The events of some stages; the data are taken in after the check."""
    for stage in stages:
        yield from events_of(params, stage)
        if stage == "check":
            yield from events_of(params, "look")
            yield from events_of(params, "intake")


ALL = ("check", "features", "base", "couple@r1", "reflow@r1", "distill@student", "evaluate_base", "evaluate@r1")


def notes(events):
    return [event.text for event in events if type(event).__name__ == "Note"]


def checkpoints_at_every_record(monkeypatch):
    monkeypatch.setattr("flows.stages.training.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("flows.stages.training.CHECKPOINT_SHARE", float("inf"))


def killed_at(events, images, model="r1"):
    """Stops a training, as a signal would, once it has seen that many images."""
    for event in events:
        if type(event).__name__ == "Progress" and event.title == f"train {model}" and event.done >= images:
            break
    events.close()
