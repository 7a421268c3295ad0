"""A sweep: the pipeline once for each point of a grid over keys of params.yaml, each run an experiment of its own.

The runs are those of the pipeline's deployment, which takes one at a time. When all have ended, a table says
what came of each.
"""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from dvc.repo import Repo
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger
from prefect.states import Cancelling, Completed, Failed

from flows.params.files import ParamsError
from flows.params.variation import Variation, parsed
from flows.pipeline import experiments, form, naming
from flows.pipeline.experiments import CannotRun
from flows.pipeline.flow import refused

DEPLOYMENT = f"{naming.FLOW}/{naming.FLOW}"
MOST = 64
POLL_SECONDS = 2.0


def points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Each combination of the grid's values.

    >>> points({"couple.nfe": [4, 8], "seed": [0]})
    [{'couple.nfe': 4, 'seed': 0}, {'couple.nfe': 8, 'seed': 0}]

    Raises:
        ParamsError: if there are too many.
    """
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(found) > MOST:
        raise ParamsError(f"grid: expected at most {MOST} combinations, got {len(found)}")
    return [parsed(point) for point in found]


@flow(
    name="reflow-sweep",
    flow_run_name=lambda: f"sweep {naming.run_name()}",
    description="The pipeline once for each combination of some values, each run an experiment of its own.",
)
def reflow_sweep(
    *,
    grid: form.Grid,
    preset: form.Preset = form.AS_IS,
    stages: form.Stages = form.NOTHING,
    experiment: form.Name = "",
    snapshot: bool = False,
) -> State[Any]:
    """Runs the pipeline once for each combination of values.

    Args:
        grid: Values by key of params.yaml, as {"couple.nfe": [4, 8, 16], "seed": [0, 1]}.
        preset: Parameters of presets/NAME.yaml to start from, or those of params.yaml.
        stages: What to reproduce, with all it depends on; nothing chosen means every stage.
        experiment: Beginning of the experiments' names.
        snapshot: The experiments take uncommitted edits along; else they start from the commit alone.
    """
    home = Path(Repo.find_root())
    try:
        wanted = points(grid)
        for point in wanted:  # all of them, before the first one runs
            experiments.params_of(home, Variation(form.chosen(preset), overrides=point), snapshot=snapshot)
    except (CannotRun, ValueError, OSError) as error:
        return refused(error)
    prefix = (experiment or naming.experiment_name())[:56]
    common = {"preset": preset, "stages": stages, "snapshot": snapshot}
    given = [
        common | {"overrides": point, "experiment": f"{prefix}-{number}"} for number, point in enumerate(wanted, 1)
    ]
    runs: list[UUID] = []
    try:
        for parameters in given:
            run = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0)
            assert isinstance(run, FlowRun)  # a coroutine only where a loop runs
            runs.append(run.id)
        ended = _awaited(runs)
    except BaseException:
        _cancel(runs)
        raise
    return _summed_up(home, wanted, ended)


def _awaited(runs: Sequence[UUID]) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        while True:
            found = [client.read_flow_run(run) for run in runs]
            if all(run.state is not None and run.state.is_final() for run in found):
                return found
            time.sleep(POLL_SECONDS)


def _cancel(runs: Sequence[UUID]) -> None:
    with get_client(sync_client=True) as client:
        for run in runs:
            state = client.read_flow_run(run).state
            if state is None or not state.is_final():
                client.set_flow_run_state(run, Cancelling(message="its sweep was cancelled"))


def _summed_up(home: Path, wanted: Sequence[Mapping[str, Any]], ended: Sequence[FlowRun]) -> State[Any]:
    """Makes the table of all points; the sweep has failed if one of them has."""
    rows = []
    for point, run in zip(wanted, ended, strict=True):
        name = str(run.labels.get(naming.EXPERIMENT, ""))
        state = run.state.name if run.state else ""
        told = (
            {key: float(f"{value:.5g}") for key, value in experiments.metrics_of(home, name).items()}
            if name
            else {}
        )
        rows.append({"experiment": name, **point, "state": state, **told})
    context = FlowRunContext.get()
    if context and context.flow_run:
        table = ArtifactCreate(
            key="sweep", type="table", data=json.dumps(rows), description="what came of it",
            flow_run_id=context.flow_run.id,
        )  # fmt: skip
        with get_client(sync_client=True) as client:
            client.create_artifact(table)
    bad = [run.name for run in ended if run.state is None or not run.state.is_completed()]
    if bad:
        get_run_logger().error(f"did not complete: {', '.join(bad)}")
        return Failed(message=f"{len(bad)} of {len(ended)} runs did not complete: {', '.join(bad[:5])}")
    return Completed(message=f"{len(ended)} experiments; compare: dvc exp show")
