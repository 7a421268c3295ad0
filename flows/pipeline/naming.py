"""What runs of the pipeline are called in Prefect: the data, what asked for it, and a number."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

from flows.params.files import FILE, ParamsError, load_yaml
from flows.pipeline.form import AS_IS, chosen

FLOW = "reflow-pipeline"
EXPERIMENT = "fmcore.experiment"  # of labels


def run_name() -> str:
    """A name as `digits nightly 12`: preset or data, schedule or experiment, and which run it is."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    given = run.parameters if run else {}
    by = run.created_by if run else None
    asked = given.get("experiment") or (by.display_value if by and by.type == "SCHEDULE" else None) or ""
    words = [chosen(given.get("preset", AS_IS)) or _data(), asked, str(_number())]
    return " ".join(str(word) for word in words if word)


def experiment_name() -> str:
    """A name for an experiment that was given none: that of the run, as DVC takes it."""
    context = FlowRunContext.get()
    name = context.flow_run.name if context and context.flow_run else "experiment"
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "experiment"


def label(labels: Mapping[str, str]) -> None:
    """Notes something on the run that this is, for other runs to find."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(context.flow_run.id, dict(labels))


def _data() -> str:
    with suppress(ParamsError, KeyError, TypeError):
        return str(load_yaml(Path(FILE))["data"]["name"])
    return "pipeline"


def _number() -> int:
    """How many runs have begun, this one included."""
    begun = FlowRunFilterState(type=StateTypes(not_any_=[StateType.SCHEDULED]))
    with suppress(PrefectException), get_client(sync_client=True) as client:
        return client.count_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])), flow_run_filter=FlowRunFilter(state=begun)
        )
    return 0
