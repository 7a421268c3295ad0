"""Journals become MLflow runs; this is the only module that imports MLflow's client.

    pipeline run        one parent run, tag `fmcore.pipeline`
    `-- stage           one child run, tag `fmcore.run`: params, metrics, pictures, tables, log, DVC digests
        `-- model       one logged model and one registered version, tag `fmcore.model`

The process may be killed between any two calls. What it made is found again by those tags; metrics, params and
artifacts sent again replace themselves; and a journal remembers how far its records are known to have arrived. So
everything arrives, once.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.watch import database
from flows.watch import journal as journals
from flows.watch.journal import Journal
from flows.watch.letterbox import Outcome, noting

EXPERIMENT = "fmcore"
DIGEST_SECONDS = 20.0
DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")
STILL_SECONDS = 1.0  # DVC writes dvc.lock in pieces, some tenths of a second long

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # By default a call to a dead server returns after four minutes. MLflow also repeats requests that
    # timed out but may have arrived, which makes two runs of one; here, each repeat looks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}

# MLflow's limits; it refuses a whole batch for one value beyond them.
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000


class Store:
    """MLflow, reached when first needed.

    Whatever it makes it looks for first; a run it finds closed is set to running until it is closed again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # In the environment, because MLflow itself looks there when it registers models.
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or database.address(root)
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self._runs: dict[str, str] = {}

    @cached_property
    def client(self) -> Any:
        """The client."""
        from mlflow import MlflowClient

        if self.uri == database.address(self.root):
            database.make(self.root, os.environ)
        return MlflowClient()

    @cached_property
    def experiment(self) -> str:
        """The experiment's id."""
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found:
            return str(found.experiment_id)
        artifacts = (self.root / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=artifacts))

    def parent(self, journal: Journal) -> str:
        """The pipeline's run."""
        started = journal.start["pipeline_process"][1]
        name = time.strftime("pipeline %Y-%m-%d %H:%M:%S", time.localtime(started))
        return self._run("fmcore.pipeline", _clean(journal.start["pipeline"]), name, started, {})

    def run(self, journal: Journal) -> str:
        """The stage's run."""
        start = journal.start
        tags = start["tags"] | {"dvc.stage": start["stage"], "mlflow.parentRunId": self.parent(journal)}
        return self._run("fmcore.run", journal.folder.name, start["stage"], start["time"], tags)

    def _run(self, tag: str, value: str, name: str, started: float, tags: Mapping[str, str]) -> str:
        if value not in self._runs:
            found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{value}'")
            if found:
                run = found[0]
                if run.info.status != "RUNNING":
                    self.client.update_run(run.info.run_id, "RUNNING")
            else:
                every = _tags({**tags, **_commit(self.root), tag: value})
                run = self.client.create_run(self.experiment, int(started * 1000), every, name)
            self._runs[value] = run.info.run_id
        return self._runs[value]

    def send(self, journal: Journal) -> None:
        """Sends the records that may not have arrived yet."""
        from mlflow.entities import Metric, Param

        run = self.run(journal)
        metrics = [
            Metric(_clean(key), float(value), int(record.time * 1000), int(record.of["step"]))
            for record in journal.fresh
            if record.kind == "metrics"
            for key, value in record.of["values"].items()
        ]
        for batch in _batches(metrics, METRICS_PER_CALL):
            self.client.log_batch(run, metrics=batch)
        for record in journal.fresh:
            match record.kind:
                case "start":
                    flat = flattened(record.of["params"])
                    texts = {_clean(key): value[:PARAM_LENGTH] for key, value in flat.items()}
                    params = [Param(key, value) for key, value in texts.items()]
                    for batch in _batches(params, PARAMS_PER_CALL):
                        self.client.log_batch(run, params=batch)
                case "picture" | "table" | "files":  # the last of version 0.1
                    self.client.log_artifacts(run, str(journal.folder / record.of["files"]))
                case "tag":
                    for tagged in (run, self.parent(journal)):
                        self.client.set_tag(tagged, record.of["name"], record.of["text"][:TAG_LENGTH])
                case "model":
                    self._send_model(journal, record.of, run)
        if any(record.kind == "note" for record in journal.fresh):
            self.client.log_artifact(run, str(journal.folder / journals.LOG))

    def _send_model(self, journal: Journal, record: dict[str, Any], run: str) -> None:
        """Stores a model folder file by file (no flavour, so no pickle) and registers it."""
        from mlflow.exceptions import MlflowException

        client, key = self.client, f"{journal.folder.name}/{record['files']}"
        same, tag = f"tags.`fmcore.model` = '{key}'", {"fmcore.model": key}
        name, registered = (re.sub(r"[/:.%'\"]", "-", record[key]) for key in ("name", "registered"))
        found = client.search_logged_models([self.experiment], same)
        model = found[0] if found else client.create_logged_model(self.experiment, name, run, tag)
        model_id = model.model_id
        if model.status != "READY":
            client.log_model_artifacts(model_id, str(journal.folder / record["files"] / record["name"]))
            client.finalize_logged_model(model_id, "READY")
        try:
            client.create_registered_model(registered)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{registered}' and {same}") or [
            client.create_model_version(registered, f"models:/{model_id}", run, tag, model_id=model_id)
        ]
        # By this tag the pages of the run and of the model link to the registry.
        links = json.dumps([{"name": registered, "version": versions[0].version}])
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": links})

    def end_pipeline(self, journals: Sequence[Journal]) -> None:
        """Closes a pipeline's run: failed if the last attempt at some stage failed."""
        parent = self.parent(journals[0])
        where = f"tags.mlflow.parentRunId = '{parent}'"
        children = self.client.search_runs([self.experiment], where, order_by=["attributes.start_time ASC"])
        last = {child.data.tags["dvc.stage"]: child.info.status for child in children}
        status = "FINISHED" if set(last.values()) <= {"FINISHED"} else "FAILED"
        ended = max(journal.end["time"] if journal.end else journal.start["time"] for journal in journals)
        self.client.set_terminated(parent, status, int(ended * 1000))
        del self._runs[_clean(journals[0].start["pipeline"])]


def dvc_digests(root: Path, stage: str, *, since: float, over: bool = False) -> dict[str, str] | None:
    """The digests of a stage's inputs and outputs, None if DVC has not written them `since` then.

    While the pipeline is not `over`, a file that was just written may not be whole, and is left for later.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    lock = root / "dvc.lock"
    try:
        written = lock.stat().st_mtime
        if written < since or (not over and time.time() - written < STILL_SECONDS):
            return None
        entry = YAML(typ="safe").load(lock)["stages"][stage]
        found = {
            f"dvc.{kind}.{item['path']}": item["md5"]
            for kind in ("out", "dep")
            for item in entry.get(f"{kind}s", [])
            if "md5" in item and not item["path"].endswith(".py")
        }
    except (OSError, YAMLError, TypeError, KeyError, AttributeError):  # none yet, or what a kill has left of it
        return None
    return found if all(DIGEST.fullmatch(str(value)) for value in found.values()) else None


def _clean(name: str) -> str:
    """A name with MLflow's alphabet; a stage of DVC's foreach is called `reflow@r1`."""
    return re.sub(r"[^\w./: -]", "_", name)


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_clean(key)[:KEY_LENGTH]: value[:TAG_LENGTH] for key, value in tags.items()}


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _commit(root: Path) -> dict[str, str]:
    if not shutil.which("git"):
        return {}
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": git.stdout.strip()} if git.returncode == 0 else {}


def ship(store: Store, journal: Journal) -> bool:
    """Sends what is new in a journal; returns whether its stage has ended and nothing is left to send."""
    if journal.fresh:
        store.send(journal)
        journal.remember()
    end = journal.end
    if end is None:
        return False
    run = store.run(journal)
    store.client.set_terminated(run, end["status"], int(end["time"] * 1000))
    if end["status"] == "FINISHED":
        # DVC writes a stage's digests after the stage has ended, and never if DVC was killed.
        over = not journal.pipeline_alive  # asked before the file is read: then nobody writes it any more
        hopeless = over or time.time() > end["time"] + DIGEST_SECONDS or not (store.root / "dvc.yaml").exists()
        digests = dvc_digests(store.root, journal.start["stage"], since=end["time"], over=over)
        if digests is None and not hopeless:
            return False
        for key, value in _tags(digests or {}).items():
            store.client.set_tag(run, key, value)
    for key, value in _tags(journals.read_state(journal.folder, "prefect").get("tags", {})).items():
        store.client.set_tag(run, key, value)
    journal.remember(done=True)
    return True


class MlflowBox:
    """MLflow's letterbox."""

    reader = "mlflow"
    pause_seconds = 2.0

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def tick(self, *, leaving: bool) -> Outcome:
        """Looks at all journals once; closes pipelines that ended or, when `leaving`, have no stage at work."""
        found: list[Journal] = []
        problems: list[str] = []
        for folder in journals.journal_folders(self.store.root):
            with noting(problems):
                journal = journals.read_journal(folder, self.reader)
                if journal is None or journal.state.get("closed"):
                    continue
                found.append(journal)
                if not journal.done:
                    ship(self.store, journal)
        for pipeline in {journal.start["pipeline"] for journal in found}:
            members = [journal for journal in found if journal.start["pipeline"] == pipeline]
            over = leaving or not any(journal.pipeline_alive for journal in members)
            if over and all(journal.done for journal in members):
                with noting(problems):
                    self.store.end_pipeline(members)
                    for journal in members:
                        journal.remember(closed=True)
        live = any(journal.alive for journal in found)
        return Outcome(live, any(journal.end and not journal.done for journal in found), problems)


def flattened(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and texts.

    >>> flattened({"train": {"seed": 0, "rates": [1, 2]}})
    {'train.seed': '0', 'train.rates': '[1, 2]'}
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
