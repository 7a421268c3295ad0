"""Journals become MLflow runs.

    pipeline run        what is compared between pipelines, the report's pictures, all parameters
    `-- model run       metrics, pictures, tables, log, digests of all stages that are about the model
        `-- model       one logged model and one registered version (`flows.registry`)

The process may be killed between any two calls. What it made is found again by its tags; metrics, params and
artifacts sent again replace themselves; and a journal remembers how far its records are known to have arrived. So
everything arrives, once.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.params.files import flattened
from flows.registry import versions
from flows.registry.card import VERSION
from flows.watch import digests, pictures, views
from flows.watch import journal as journals
from flows.watch.digests import DEP
from flows.watch.journal import Journal
from flows.watch.letterbox import Outcome, noting
from flows.watch.monitors import Monitors
from flows.watch.naming import PAGE, description
from flows.watch.runs import Runs
from flows.watch.store import METRICS_PER_CALL, Store, batches, clean, tagged

DIGEST_SECONDS = 20.0
TIMED = "cost/"  # numbers of the clock; all others are the same whenever they are measured
DATA = ("dataset", "couplings/")  # what of a stage's inputs is data


class Sender:
    """Sends what journals hold to the runs they belong to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.runs = Runs(store)

    def send(self, journal: Journal) -> None:
        """Sends the records that may not have arrived yet."""
        if journal.fresh[0].kind == "start":
            self.runs.begin(journal)
            self.store.log_params(self.runs.of(journal, "").run, flattened(journal.start["params"]))
            for model, own in journal.start.get("by_model", {}).items():
                self.store.log_params(self.runs.of(journal, model).run, flattened(own))
        self._send_metrics(journal)
        run = self.runs.of(journal).run
        for record in journal.fresh:
            match record.kind:
                case "picture":
                    self._send_picture(journal, record.of)
                case "table" | "files":  # the last of version 0.1
                    self.store.client.log_artifacts(run, str(journal.folder / record.of["files"]))
                case "tag":
                    for tagged_run in {run, self.runs.of(journal, "").run}:
                        self.store.set_tags(tagged_run, {record.of["name"]: record.of["text"]})
                case "model":
                    self._register(journal, record.of)
                case "rated":
                    self._rate(journal, record.of)
        if any(record.kind == "note" for record in journal.fresh):
            log = str(journal.folder / journals.LOG)
            self.store.client.log_artifact(run, log, f"logs/{clean(journal.start['stage'])}")

    def _send_metrics(self, journal: Journal) -> None:
        """The time of a number is that of its pipeline's start, unless it is a number of the clock.

        So a number that two stages tell, or one stage twice after a kill, is one to MLflow.
        """
        from mlflow.entities import Metric

        found: dict[str, list[Any]] = {}
        for record in journal.fresh:
            if record.kind == "metrics":
                made = self.runs.of(journal, record.of.get("of") or None)
                for key, value in record.of["values"].items():
                    at = int(record.time * 1000) if key.startswith(TIMED) else made.started
                    step = int(record.of["step"])
                    found.setdefault(made.run, []).append(Metric(clean(key), float(value), at, step))
        for run, metrics in found.items():
            for batch in batches(metrics, METRICS_PER_CALL):
                self.store.client.log_batch(run, metrics=batch)

    def _send_picture(self, journal: Journal, record: dict[str, Any]) -> None:
        """As a picture of the charts, and as a file too where it is not beside others there."""
        run = self.runs.of(journal, record.get("of") or None).run
        folder, name = journal.folder / record["files"], record["name"]
        picture = folder / f"pictures/{name}.png"
        if not (key := record.get("beside")):
            self.store.client.log_artifacts(run, str(folder))
            key = f"{journal.start['stage']}/{name}"
        made = pictures.charted(picture, clean(key), journal.folder / "images")
        self.store.client.log_artifacts(run, str(made), "images")
        self.store.set_tags(run, pictures.TAG)

    def _register(self, journal: Journal, record: dict[str, Any]) -> None:
        """Registers a model; what its stage says of code and parameters is said of it, another stage's is not."""
        own = journal.start.get("model") == record["name"]
        data = {key: value for key, value in journal.start["tags"].items() if own or key == "fmcore.data"}
        tags = tagged(data | {"fmcore.model": record["name"]})
        run = self.runs.of(journal, record["name"]).run
        folder = journal.folder / record["files"] / record["name"]
        version = versions.register(self.store.client, self.store.experiment, run, folder, tags)
        # A version that is there already, of the same weights, names the run that made it first.
        self.store.set_tags(run, {VERSION: f"{version.name}/{version.version}"})

    def _rate(self, journal: Journal, record: dict[str, Any]) -> None:
        """Notes what a registered model scores, and who is the best of all."""
        data, samples = (
            journal.start["tags"].get("fmcore.data", ""),
            journal.folder / record["files"] / "samples.png",
        )
        scores = {budget: (value, how) for budget, (value, how) in record["scores"].items()}
        versions.rate(self.store.client, data, record["sha256"], record["yardstick"], scores, samples)

    def end(self, journal: Journal, digests: Mapping[str, str]) -> None:
        """Says how a stage ended, how long it took, and what DVC calls its inputs and outputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        assert journal.end is not None
        run, stage = self.runs.of(journal).run, journal.start["stage"]
        kind, ended = stage.partition("@")[0].removesuffix(f"_{journal.start.get('model')}"), journal.end["time"]
        seconds = Metric(clean(f"cost/seconds.{kind}"), ended - journal.start["time"], int(ended * 1000), 0)
        self.store.client.log_batch(run, metrics=[seconds])
        self.store.set_tags(run, digests)
        context = [InputTag("mlflow.data.context", "evaluation" if kind.startswith("evaluate") else "training")]
        inputs = []
        for path, digest in ((key.removeprefix(DEP), value) for key, value in digests.items()):
            if path.startswith(DATA):
                name = journal.start["tags"].get("fmcore.data", path) if path == DATA[0] else path
                source = json.dumps({"path": path, "md5": digest, "checkout": str(self.store.root)})
                inputs.append(DatasetInput(Dataset(name, digest, "dvc", source), context))
        if inputs:
            self.store.client.log_inputs(run, inputs)
        self.runs.end(journal)
        self._describe(self.runs.of(journal, "").run)

    def link(self, journal: Journal) -> bool:
        """Notes what Prefect calls a stage's run, if it has one; returns whether nothing is left to wait for."""
        prefect = journals.read_state(journal.folder, "prefect")
        links = prefect.get("tags", {})
        if links:  # which are there as soon as Prefect has a run
            run, stage = self.runs.of(journal).run, journal.start["stage"]
            self.store.set_tags(run, links | {f"{PAGE}{stage}": links["prefect.flow_run_url"]})
            self._describe(run)
        if above := prefect.get("above"):
            pipeline = self.runs.of(journal, "").run
            self.store.set_tags(pipeline, above | {f"{PAGE}pipeline": above["prefect.flow_run_url"]})
            self._describe(pipeline)
        return bool(links) or bool(prefect.get("done")) or journal.start.get("api") is None

    def _describe(self, run: str) -> None:
        found = self.store.client.get_run(run).data
        if (text := description(found.tags, found.metrics)) != found.tags.get("mlflow.note.content", ""):
            self.store.set_tags(run, {"mlflow.note.content": text})


def ship(sender: Sender, journal: Journal) -> bool:
    """Sends what is new in a journal; returns whether its stage has ended and nothing is left to send."""
    if journal.fresh:
        sender.send(journal)
        # Prefect's letterbox links to that run.
        journal.remember(run=sender.runs.of(journal).run, experiment=sender.store.experiment)
    end = journal.end
    if end is None:
        return False
    found: dict[str, str] | None = {}
    if end["status"] == "FINISHED":
        # DVC writes a stage's digests after the stage has ended, and never if DVC was killed.
        root = Path(journal.start.get("place") or sender.store.root)
        over = not journal.pipeline_alive  # asked before: then nobody writes the file
        hopeless = over or time.time() > end["time"] + DIGEST_SECONDS or not (root / "dvc.yaml").exists()
        found = digests.dvc_digests(root, journal.start["stage"], since=end["time"], over=over)
        if found is None and not hopeless:
            return False
    sender.end(journal, found or {})
    journal.remember(done=True)
    return True


def _is_work(journal: Journal) -> bool:
    """Whether a stage is worth a run: not if it looked around, as it always does, and found nothing to do."""
    return not journal.start.get("always") or (journal.end or {}).get("status", "FINISHED") != "FINISHED"


class MlflowBox:
    """MLflow's letterbox."""

    reader = "mlflow"
    pause_seconds = 2.0

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.sender = Sender(self.store)
        self.monitors = Monitors(self.sender.runs)
        self.views = views.Views(self.store)

    def tick(self, *, leaving: bool) -> Outcome:
        """Looks at all journals once; closes pipelines that ended or, when `leaving`, have no stage at work."""
        found: list[Journal] = []
        problems: list[str] = []
        for folder in journals.journal_folders(self.store.root):
            with noting(problems):
                journal = journals.read_journal(folder, self.reader)
                if journal is not None and not (journal.state.get("closed") and journal.state.get("linked")):
                    found.append(journal)
        at_work = {journal.start["pipeline"] for journal in found if _is_work(journal)}
        for journal in sorted(found, key=lambda journal: journal.start["time"]):
            with noting(problems):
                if journal.start["pipeline"] in at_work:
                    self._deliver(journal)
                elif leaving or not journal.pipeline_alive:
                    journal.remember(done=True, closed=True, linked=True)
        for pipeline in {journal.start["pipeline"] for journal in found}:
            members = [j for j in found if j.start["pipeline"] == pipeline and not j.state.get("closed")]
            over = leaving or not any(journal.pipeline_alive for journal in members)
            if members and over and all(journal.done for journal in members):
                with noting(problems):
                    self._close(members)
        live = any(journal.alive for journal in found)
        return Outcome(live, any(journal.end and not journal.done for journal in found), problems)

    def _deliver(self, journal: Journal) -> None:
        """Sends what a journal holds, and shows what is new of it."""
        if not journal.done:
            told = {record.kind for record in journal.fresh} & {"start", "metrics", "picture"}
            ship(self.sender, journal)
            self.monitors.watch(journal)
            if told:
                self.views.update(journal)
        if not journal.state.get("linked") and self.sender.link(journal):
            journal.remember(linked=True)

    def _close(self, members: list[Journal]) -> None:
        """Closes the run of a pipeline that is over."""
        ended = max(journal.end["time"] if journal.end else journal.start["time"] for journal in members)
        self.sender.runs.end_pipeline(members[0], ended)
        for journal in members:
            journal.remember(closed=True)
