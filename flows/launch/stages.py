"""Which function runs each stage of dvc.yaml."""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from flows.events import Events
from flows.params.schema import Params
from flows.workshop.entry import Stage


class Code(NamedTuple):
    """The `file` in `flows/stages`, with a function of its name; the `model` it is about, if that is fixed."""

    file: str
    model: str = ""


# Stages whose file has another name, or that are always about one model.
OTHERS = {
    "base": Code("base", "base"),
    "evaluate_base": Code("evaluate", "base"),
    "evaluate_student": Code("evaluate"),
}


def code_of(kind: str) -> Code:
    """What runs the entry of that name; reached by name, so a stage's own imports begin when it runs."""
    return OTHERS.get(kind, Code(kind))


def stage_at(address: str) -> Stage:
    """The stage at an address in dvc.yaml, as `base` or `couple@r1`."""
    kind, _, key = address.partition("@")
    return Stage(address, key or code_of(kind).model)


def started(params: Params, stage: Stage) -> Events:
    """The stage's events; iterating over them runs the stage."""
    file = code_of(stage.address.partition("@")[0]).file
    function: Callable[[Params, Stage], Events] = getattr(import_module(f"flows.stages.{file}"), file)
    return function(params, stage)
