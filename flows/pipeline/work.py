"""A pipeline run: which stages run, in which order, and what came of each; with Prefect or without.

DVC is asked once what has changed, and once more when a stage that runs every time has made something new. A stage
of which nothing has changed starts no process: so a run in which all is cached costs little more than `dvc repro`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.local.process import PIPELINE, pipeline_key
from flows.params.variation import Variation
from flows.pipeline import experiments
from flows.pipeline.children import Children, StageFailed, Stopped, dvc, environment
from flows.pipeline.experiments import Experiment
from flows.pipeline.plan import Planned, changes, plan

FRESH = "its parameters, inputs and code are as they were"
RESTORED = "it had run on the same before: its outputs are from DVC's cache"


@dataclass(frozen=True)
class Wish:
    """What a run is to do.

    Main arguments:
        stages: those to reproduce, with all they depend on; None for every one.
        variation: what differs from params.yaml; if anything does, the run is an experiment.
        experiment: its name; a run with a name is an experiment, too.
        snapshot: whether an experiment takes uncommitted edits along.

    Other arguments:
        alone: whether `stages` run without what they depend on.
        new_data: whether nothing runs unless the data have changed.
        force: run stages of which nothing has changed, too.
        retries: how often a stage whose process was killed is started again.
        seconds: how long a stage may take, None for any time.
    """

    stages: tuple[str, ...] | None = None
    variation: Variation = field(default_factory=Variation)
    experiment: str | None = None
    snapshot: bool = False
    alone: bool = False
    new_data: bool = False
    force: bool = False
    retries: int = 1
    seconds: float | None = None

    @property
    def is_experiment(self) -> bool:
        """Whether it runs beside the user's checkout."""
        return bool(self.variation or self.experiment)


class Job(NamedTuple):
    """A run in its place: the folder its stages run in, and the experiment that it is, if it is one."""

    wish: Wish
    home: Path
    root: Path
    experiment: Experiment | None


class Visit(NamedTuple):
    """What is to be done with a stage: let DVC run it, keep it as it is, or skip it; and why."""

    stage: str
    parents: tuple[str, ...]
    action: Literal["run", "keep", "skip"]
    why: str


class Outcome(NamedTuple):
    """What came of a stage; `text` says why, or what went wrong."""

    stage: str
    end: Literal["done", "cached", "failed", "skipped", "stopped"]
    text: str
    seconds: float = 0.0
    moved: bool = False  # whether its outputs are others than before, so that who reads them must be asked again


@contextmanager
def placed(home: Path, wish: Wish, name: str) -> Iterator[Job]:
    """The place where a run happens: the checkout, or the clone for an experiment, called `name` if it has none.

    Raises:
        ParamsError, CannotRun: if it cannot happen, before anything has.
    """
    if not wish.is_experiment:
        yield Job(wish, home, home, None)
        return
    chosen = wish.experiment or name
    with experiments.opened(home, wish.variation, name=chosen, snapshot=wish.snapshot) as experiment:
        yield Job(wish, home, experiment.root, experiment)


def walk(job: Job, meet: Callable[[Visit], Outcome]) -> list[Outcome]:
    """Visits every stage in order; after the first that fails or is stopped, the others are skipped.

    Raises:
        ValueError: if there is no such stage.
    """
    stages = plan(job.root, job.wish.stages, alone=job.wish.alone)
    found: dict[str, Outcome] = {}
    if job.wish.new_data:
        looks = plan(job.root, [name for name, stage in stages.items() if stage.always])
        before = [_made(job.root, name) for name in looks]
        _walk(job, looks, found, meet)
        if failure(found.values()) or before == [_made(job.root, name) for name in looks]:
            return list(found.values())
    _walk(job, {name: stage for name, stage in stages.items() if name not in found}, found, meet)
    return list(found.values())


def _walk(
    job: Job, stages: Mapping[str, Planned], found: dict[str, Outcome], meet: Callable[[Visit], Outcome]
) -> None:
    changed = changes(job.root)
    broken: Outcome | None = None
    for stage, (parents, always) in stages.items():
        if broken:
            why = f"not started: stage {broken.stage!r} {'failed' if broken.end == 'failed' else 'was stopped'}"
            found[stage] = meet(Visit(stage, parents, "skip", why))
            continue
        visit = _visit(job, stage, parents, changed, found)
        before = _made(job.root, stage) if visit.action == "run" else None
        outcome = meet(visit)
        if outcome.moved and before is not None and _made(job.root, stage) == before:
            outcome = outcome._replace(moved=False)  # it ran and made the same
        found[stage] = outcome
        if outcome.end in ("failed", "stopped"):
            broken = outcome
        elif always and outcome.moved and changed is not None:
            changed = changes(job.root)


def _visit(
    job: Job, stage: str, parents: tuple[str, ...], changed: Mapping[str, str] | None, found: Mapping[str, Outcome]
) -> Visit:
    moved = [parent for parent in parents if parent in found and found[parent].moved]
    if job.wish.force:
        return Visit(stage, parents, "run", "it was asked to run even if nothing changed")
    if changed is None:
        return Visit(stage, parents, "run", "DVC decides")
    if stage in changed:
        return Visit(stage, parents, "run", changed[stage])
    if moved:
        return Visit(stage, parents, "run", f"{', '.join(moved)} ran")
    return Visit(stage, parents, "keep", FRESH)


def reproduced(
    job: Job, children: Children, visit: Visit, log: Callable[[str], object], env: Mapping[str, str] | None = None
) -> Outcome:
    """Does what a visit is for, and tells what came of it; never raises for what a stage does."""
    stage, wish = visit.stage, job.wish
    if visit.action == "skip":
        return Outcome(stage, "skipped", visit.why)
    if visit.action == "keep":
        return Outcome(stage, "cached", visit.why)
    given = {PIPELINE: pipeline_key()} | (job.experiment.environment if job.experiment else {}) | dict(env or {})
    began = time.monotonic()
    log(f"{stage} runs: {visit.why}")
    for left in range(wish.retries, -1, -1):
        try:
            did = children.reproduce(job.root, stage, force=wish.force, env=given, log=log, seconds=wish.seconds)
        except Stopped as error:
            return Outcome(stage, "stopped", str(error), time.monotonic() - began)
        except StageFailed as error:
            if left and error.killed:
                log(f"{error}; it goes on from its last checkpoint, shard or score")
                continue
            return Outcome(stage, "failed", str(error), time.monotonic() - began)
        seconds = time.monotonic() - began
        if did == "ran":
            return Outcome(stage, "done", visit.why, seconds, moved=True)
        if did == "restored":
            return Outcome(stage, "cached", RESTORED, seconds, moved=True)
        return Outcome(stage, "cached", f"{visit.why}, and nothing that it reads has changed", seconds)
    raise AssertionError


def keep(job: Job, outcomes: Sequence[Outcome]) -> str | None:
    """Keeps an experiment whose stages are all well; its commit, None for a run in the checkout.

    Raises:
        CannotRun: if DVC or git cannot.
    """
    if job.experiment is None:
        return None
    stages = [outcome.stage for outcome in outcomes]
    return experiments.kept(job.experiment, stages, dvc(), environment() | job.experiment.environment)


def failure(outcomes: Iterable[Outcome]) -> Outcome | None:
    """The stage that failed or was stopped, if one did."""
    return next((outcome for outcome in outcomes if outcome.end in ("failed", "stopped")), None)


def _made(root: Path, stage: str) -> object:
    """What dvc.lock says of a stage's outputs."""
    try:
        entry = YAML(typ="safe").load(root / experiments.LOCK_FILE)["stages"][stage]
        return [(out["path"], out.get("md5")) for out in entry["outs"]]
    except (OSError, YAMLError, KeyError, TypeError):
        return None
