"""What is said of a stage to whoever watches it: how its runs are found, and what its model was made with."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from flows.launch.stages import stage_at
from flows.layout import MODELS
from flows.local.checkout import state_of
from flows.params.files import lay_over
from flows.params.schema import Params
from flows.workshop.entry import Entry, Stage, addresses, entry_of, graph

COMMON = (
    "device",
    "precision",
    "compile",
    "launch",
    "evaluate",
)  # to all models, and in the parameters of the pipeline
REPORT = "report"  # the stage that tells of all models
EXPERIMENT = "DVC_EXP_NAME"  # of the environment, set by `dvc exp run`


class About(NamedTuple):
    """What the journal of a stage begins with; `flows.watch.journal.open_journal` says what each part is."""

    params: dict[str, Any]
    tags: dict[str, str]
    model: str
    models: tuple[str, ...]
    by_model: dict[str, dict[str, Any]]
    always: bool


def about(params: Params, stage: Stage, entry: Entry, root: Path) -> About:
    """What there is to say of a stage that is about to run."""
    whole = params.model_dump(mode="json")
    tags = {
        "fmcore.data": params.data.name,
        "fmcore.params": hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12],
        "fmcore.checkout": str(root),
    }
    if experiment := os.environ.get(EXPERIMENT):
        tags["dvc.exp"] = experiment
    if source := state_of(Path.cwd()):
        tags |= {"mlflow.source.git.commit": source.commit, "fmcore.dirty": source.dirty}
        tags |= {"mlflow.source.git.branch": source.branch} if source.branch else {}
    always = bool(graph()[stage.address.partition("@")[0]].get("always_changed"))
    model = stage.name if stage.name in params.models else ""
    by_model = {model: own_params(stage, entry)} if model else {}
    if stage.address == REPORT:
        by_model = params_of_models(params, whole)
    return About(whole, tags, model, tuple(params.models), by_model, always)


def params_of_models(params: Params, whole: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters that decide each model, of those too that no stage ran for, since DVC knew them."""
    found: dict[str, dict[str, Any]] = {model: {} for model in params.models}
    for stage in map(stage_at, addresses(whole)):
        if stage.name in found:
            found[stage.name] |= own_params(stage, entry_of(stage.address, whole))
    return found


def own_params(stage: Stage, entry: Entry) -> dict[str, Any]:
    """The parameters that decide a stage, named alike for all models, so that runs can be compared.

    `base.train` and `reflow.train` with what a round changes in it are both `train`; what a student differs in is
    laid over its section. Sections that several stages of one model read keep their names: how its couplings were
    made is `couple`. Those that cannot differ between the models of a pipeline are not among them.
    """
    kind = stage.address.partition("@")[0]
    trains = any(out.parts[0] == MODELS.name for out in entry.outs)
    found: dict[str, Any] = {}
    for key, value in ((key, value) for key, value in entry.params.items() if key not in COMMON):
        key = re.sub(rf"^\w+\.(rounds|students)\.{re.escape(stage.name)}(\.|$)", "", key)
        key = key.removeprefix(f"{kind}.") if trains else key
        for name, item in value.items() if trains and key in (kind, "") else [(key, value)]:
            known = found.get(name)
            found[name] = {**known, **item} if isinstance(known, Mapping) and isinstance(item, Mapping) else item
    found = deepcopy(found)  # the entry's own values stay as they are
    lay_over(found, found.pop("differs", {}))
    return found
