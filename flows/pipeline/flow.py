"""The pipeline as a Prefect flow: DVC's graph, one task per stage.

dvc.yaml holds the only graph; this flow reads it and asks DVC for one stage at a time. DVC decides whether a stage
runs, Prefect shows, schedules and cancels.
"""

import logging
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.local import api, lockfile, tracking
from flows.local.process import pipeline_key
from flows.params.variation import Variation, parsed
from flows.pipeline import form, naming, work
from flows.pipeline.children import Children
from flows.pipeline.experiments import CannotRun, edited
from flows.pipeline.page import Page
from flows.pipeline.shown import Shown
from flows.pipeline.work import Job, Outcome, Visit, Wish

PARENT_TASK, PARENT_FLOW = "FMCORE_PARENT_TASK_RUN", "FMCORE_PARENT_FLOW_RUN"


@flow(
    name=naming.FLOW,
    flow_run_name=naming.run_name,
    description="What is not up to date in this checkout; with any difference from params.yaml, beside it.",
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
)
def reflow_pipeline(
    *,
    preset: form.Preset = form.AS_IS,
    stages: form.Stages = form.NOTHING,
    rounds: form.Rounds = 0,
    nfe: form.Nfe = form.NOTHING,
    seed: form.Seed = -1,
    overrides: form.Overrides = form.NOTHING,
    experiment: form.Name = "",
    snapshot: bool = False,
    new_data: bool = False,
    force: bool = False,
    retries: form.Retries = 1,
    hours: form.Hours = 0,
) -> State[Any]:
    """Reproduces stages with all they depend on; anything that differs from params.yaml makes it an experiment.

    Args:
        preset: Parameters of presets/NAME.yaml, or those of params.yaml.
        stages: What to reproduce, with all it depends on; nothing chosen means every stage.
        rounds: Number of reflow rounds; each further one is taught by the one before. 0: as they are.
        nfe: Network evaluations at which models are scored by Euler; none: as they are.
        seed: Seed of training and sampling; -1: as it is.
        overrides: Any other key of params.yaml, as {"couple.nfe": 8} or as lines couple.nfe=8.
        experiment: Name of the DVC experiment; made up if you leave it empty, numbered if it is taken.
        snapshot: An experiment takes uncommitted edits along; else it starts from the commit alone.
        new_data: Run nothing unless the data have changed.
        force: Run stages that have not changed, too.
        retries: How often a stage whose process was killed is started again; it goes on where it was.
        hours: Longest time that a stage may take; 0: as long as it needs.
    """
    # The form needs the words above in this form of docstring.
    try:
        asked = (rounds or None, tuple(nfe) or None, None if seed < 0 else seed, parsed(overrides))
        wish = Wish(
            tuple(stages) or None, Variation(form.chosen(preset), *asked), experiment or None, snapshot,
            new_data=new_data, force=force, retries=retries, seconds=form.limit(hours),
        )  # fmt: skip
        return _run(Path(Repo.find_root()), wish)
    except (CannotRun, ValueError, OSError) as error:
        return refused(error)


@flow(
    name="reflow-stage",
    flow_run_name="{stage}",
    description="One stage of dvc.yaml in this checkout, without those it depends on.",
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
)
def reflow_stage(*, stage: form.Stage, force: bool = True, hours: form.Hours = 0) -> State[Any]:
    """Runs one stage.

    Args:
        stage: The stage; of several rounds or students all.
        force: Run it although nothing has changed.
        hours: Longest time that it may take; 0: as long as it needs.
    """
    try:
        wish = Wish((stage,), alone=True, force=force, seconds=form.limit(hours))
        return _run(Path(Repo.find_root()), wish)
    except (CannotRun, ValueError, OSError) as error:
        return refused(error)


def _is_news(record: logging.LogRecord) -> bool:
    """False for the traceback that Prefect's engine adds to a failure which the state tells in a line."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


logging.getLogger("prefect.flow_runs").addFilter(_is_news)


def refused(error: Exception) -> State[Any]:
    """The end of a run that cannot be, in a line."""
    message = "; ".join(str(error).splitlines())
    get_run_logger().error(message)
    return Failed(message=message)


def _run(home: Path, wish: Wish) -> State[Any]:
    log = get_run_logger()
    with work.placed(home, wish, naming.experiment_name()) as job, Children() as children:
        if line := lockfile.mend(job.root):
            log.warning(line)
        if job.experiment:
            log.info(
                f"experiment {job.experiment.name}: {' '.join(wish.variation.words) or 'params.yaml as it is'}"
            )
            if not wish.snapshot and (files := edited(home)):
                log.warning(f"without these uncommitted edits (snapshot takes them): {', '.join(files[:5])}")
        page = Page(job.root, job.experiment, _curves(home))
        with Shown(page) as shown:
            outcomes = work.walk(job, _Visitor(job, children, shown).meet)
            broken = work.failure(outcomes)
            if broken is None:
                page.commit = work.keep(job, outcomes)
        if page.commit and job.experiment:
            naming.label({naming.EXPERIMENT: job.experiment.name})
            log.info(f"kept as DVC experiment {job.experiment.name}; compare: dvc exp show")
    if broken is None:
        ran = [outcome for outcome in outcomes if outcome.end == "done"]
        # `look` runs every time; only if it saw something new has anything happened.
        if not wish.force and not any(outcome.moved for outcome in ran):
            return Completed(name="Cached", message="nothing had changed")
        return Completed(message=f"{len(ran)} of {len(outcomes)} stages ran")
    return Failed(message=broken.text) if broken.end == "failed" else Cancelled(message=broken.text)


def _curves(home: Path) -> str | None:
    """Where MLflow's page shows the curves of this pipeline, None if that is not known."""
    own = api.mlflow_of(home)
    return f"{own}/?pipeline={pipeline_key()}" if own else tracking.page(home)


class _Visitor:
    """Visits stages as tasks, one after the other, each shown with what it waited for."""

    def __init__(self, job: Job, children: Children, shown: Shown) -> None:
        self.job, self.children, self.shown = job, children, shown
        self.futures: dict[str, PrefectFuture[Any]] = {}
        self.last: Outcome | None = None

    def meet(self, visit: Visit) -> Outcome:
        """Does what the visit is for in a task, whose state says what came of it."""
        stage = visit.stage

        @task(name=stage, task_run_name=stage, cache_policy=NO_CACHE)
        def reproduce() -> State[Any]:
            env = {PARENT_TASK: str(task_run.id), PARENT_FLOW: str(flow_run.id or "")}
            logger = get_run_logger()

            def log(line: str) -> None:
                self.shown.page.hear(line)
                logger.info(line)

            self.last = outcome = work.reproduced(self.job, self.children, visit, log, env)
            return _state(outcome)

        self.shown.begin(stage if visit.action == "run" else "")
        # A parent that has failed would make this one "not ready", which reads as a failure of its own.
        well = [self.futures[name] for name in visit.parents if name in self.futures]
        future = reproduce.submit(wait_for=well if visit.action != "skip" else [], return_state=False)
        future.wait()
        self.futures[stage] = future
        assert self.last is not None
        self.shown.end(self.last, f"/runs/task-run/{future.task_run_id}")
        return self.last


def _state(outcome: Outcome) -> State[Any]:
    match outcome.end:
        case "done":
            return Completed(message=outcome.text)
        case "cached":
            return Completed(name="Cached", message=outcome.text)
        case "failed":
            return Failed(message=outcome.text)
        case "skipped":
            return Cancelled(name="Skipped", message=outcome.text)
    return Cancelled(message=outcome.text)
