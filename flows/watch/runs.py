"""The runs that journals are sent to: one for each pipeline, and below it one for each of its models.

    pipeline run    tags `fmcore.kind` = pipeline, `fmcore.pipeline`
    `-- model run   tags `fmcore.kind` = model, `fmcore.pipeline`, `fmcore.model`

A stage belongs to the run of the model it is about, else to that of its pipeline, and says there how it ended: tag
`fmcore.stage.STAGE`. Whatever is made is looked for first by these tags, so it is made once, however often the
process is killed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from flows.params.files import PRESETS, nearest_preset
from flows.watch import naming
from flows.watch.journal import Journal
from flows.watch.store import Store, clean, tagged

STAGE = "fmcore.stage."
WORST = ("FAILED", "KILLED")


class Made(NamedTuple):
    """A run that is there, and of its pipeline the number and what its parameters differ in.

    `started` is when the pipeline started, in milliseconds.
    """

    run: str
    number: int
    difference: str
    started: int


class Runs:
    """Finds and makes runs, opens and closes them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._made: dict[tuple[str, str], Made] = {}

    def of(self, journal: Journal, model: str | None = None) -> Made:
        """The run of a model, of the one that the stage is about where none is named; of the pipeline for ""."""
        name = journal.start.get("model", "") if model is None else model
        pipeline = clean(journal.start["pipeline"])
        if (pipeline, name) not in self._made:
            ours = {"kind": "model", "model": name} if name else {"kind": "pipeline"}
            found = next(iter(self.store.runs(pipeline=pipeline, **ours)), None)
            tags = {f"fmcore.{key}": value for key, value in {"pipeline": pipeline, **ours}.items()}
            make = self._model if name else self._pipeline
            self._made[pipeline, name] = make(journal, tags, found)
        return self._made[pipeline, name]

    def _pipeline(self, journal: Journal, ours: Mapping[str, str], found: Any) -> Made:
        start = journal.start
        if found:
            about = found.data.tags
            number, difference = int(about["fmcore.number"]), about.get("fmcore.difference", "")
            return Made(found.info.run_id, number, difference, found.info.start_time)
        before = [int(run.data.tags["fmcore.number"]) for run in self.store.runs(kind="pipeline", newest=50)]
        number, data = 1 + max(before, default=0), start["tags"].get("fmcore.data", "")
        nearest = nearest_preset(start["params"], self.store.root / PRESETS) if data else None
        difference = naming.differs(nearest, data)
        tags = {"fmcore.number": str(number), "fmcore.order": naming.order(0, number)}
        tags["fmcore.models"] = " ".join(start.get("models", ()))
        if nearest:
            tags |= {"fmcore.preset": nearest.preset, "fmcore.differs": "\n".join(nearest.words)}
            tags["fmcore.difference"] = difference
        started = int(start["pipeline_process"][1] * 1000)
        title = naming.pipeline_name(data, number, difference)
        return Made(self._create(title, started, start["tags"], ours, tags), number, difference, started)

    def _model(self, journal: Journal, ours: Mapping[str, str], found: Any) -> Made:
        pipeline, start, name = self.of(journal, ""), journal.start, ours["fmcore.model"]
        if found:
            return pipeline._replace(run=found.info.run_id)
        models, number = start.get("models", []), pipeline.number
        place = models.index(name) if name in models else len(models)
        tags = {
            "mlflow.parentRunId": pipeline.run,
            "mlflow.runColor": naming.colour(place, number),
            "fmcore.order": naming.order(place, number),
        }
        title = naming.model_name(name, start["tags"].get("fmcore.data", ""), number, pipeline.difference)
        return pipeline._replace(run=self._create(title, int(start["time"] * 1000), start["tags"], ours, tags))

    def _create(self, title: str, started: int, *tags: Mapping[str, str]) -> str:
        every = tagged({key: value for part in tags for key, value in part.items()})
        return str(self.store.client.create_run(self.store.experiment, started, every, title).info.run_id)

    def begin(self, journal: Journal) -> None:
        """Says that a stage is at work, in runs that are open, again if they were closed."""
        if self._say(journal, "RUNNING"):
            self.store.set_tags(self.of(journal).run, journal.start["tags"])
            for run in {self.of(journal).run, self.of(journal, "").run}:
                self.store.client.update_run(run, "RUNNING")

    def end(self, journal: Journal) -> None:
        """Says how a stage ended, and closes the run of its model if no other stage is at work on it."""
        assert journal.end is not None
        self._say(journal, journal.end["status"])
        if journal.start.get("model"):
            self._close(self.of(journal).run, journal.end["time"])

    def end_pipeline(self, journal: Journal, ended: float) -> None:
        """Closes the run of a pipeline, as the last attempts at its stages ended, and what is open below."""
        pipeline = self.of(journal, "").run
        every = self.store.runs(pipeline=clean(journal.start["pipeline"]))
        for run in every:
            if run.info.run_id != pipeline and run.info.status == "RUNNING":
                self._close(run.info.run_id, ended, over=True)
        status = _worst({status for run in every for status in _statuses(run)})
        self.store.client.set_terminated(pipeline, status, int(ended * 1000))
        for key in [key for key in self._made if key[0] == clean(journal.start["pipeline"])]:
            del self._made[key]

    def _say(self, journal: Journal, status: str) -> bool:
        """Notes how a stage fares, unless a later attempt at it has said so already."""
        began = datetime.fromtimestamp(journal.start["time"], UTC).isoformat(timespec="microseconds")
        run, key = self.of(journal).run, clean(f"{STAGE}{journal.start['stage']}")
        known = self.store.client.get_run(run).data.tags.get(key, "").partition(" ")
        if known[2] > began or (known[2] == began and status == "RUNNING" != known[0]):
            return False
        self.store.client.set_tag(run, key, f"{status} {began}")
        return True

    def _close(self, run: str, ended: float, *, over: bool = False) -> None:
        statuses = _statuses(self.store.client.get_run(run))
        if over or "RUNNING" not in statuses:
            self.store.client.set_terminated(run, _worst(statuses), int(ended * 1000))


def _worst(statuses: set[str]) -> str:
    """What a run ends as; a stage that still runs was ended with its pipeline."""
    return next((bad for bad in WORST if bad in statuses), "KILLED" if "RUNNING" in statuses else "FINISHED")


def _statuses(run: Any) -> set[str]:
    """How the last attempts at a run's stages ended, or `RUNNING`."""
    return {value.partition(" ")[0] for key, value in run.data.tags.items() if key.startswith(STAGE)}
