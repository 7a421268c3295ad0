"""Sends the stages' journals to MLflow: `python -m flows.watch.shipper ROOT [--once]`.

One process per repository reads what `flows.watch.tracking` wrote and is the only one that imports MLflow.

    pipeline run        one parent run, tag `fmcore.pipeline`
    `-- stage           one child run, tag `fmcore.run`: params, metrics, pictures, tables, log, DVC digests
        `-- model       one logged model and one registered version, tag `fmcore.model`

It may be killed between any two calls. What it made is found again by those tags; metrics, params and
artifacts sent again replace themselves; and a journal remembers how many of its records are known to have
arrived. So everything arrives, once.
"""

import argparse
import fcntl
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.local.process import redacted
from flows.watch import database, tracking
from flows.watch.tracking import Journal

EXPERIMENT = "fmcore"
PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 30.0
LINGER_SECONDS = 10.0
GIVE_UP_SECONDS = 60.0
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

log = logging.getLogger("flows.watch.shipper")


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
        fresh = journal.records[journal.shipped :]
        metrics = [
            Metric(_clean(key), float(value), int(record["time"] * 1000), int(record["step"]))
            for record in fresh
            if record["kind"] == "metrics"
            for key, value in record["values"].items()
        ]
        for batch in _batches(metrics, METRICS_PER_CALL):
            self.client.log_batch(run, metrics=batch)
        for record in fresh:
            match record["kind"]:
                case "start":
                    texts = {_clean(key): value[:PARAM_LENGTH] for key, value in record["params"].items()}
                    params = [Param(key, value) for key, value in texts.items()]
                    for batch in _batches(params, PARAMS_PER_CALL):
                        self.client.log_batch(run, params=batch)
                case "files":
                    self.client.log_artifacts(run, str(journal.folder / record["files"]))
                case "tag":
                    for tagged in (run, self.parent(journal)):
                        self.client.set_tag(tagged, record["name"], record["text"][:TAG_LENGTH])
                case "model":
                    self._send_model(journal, record, run)
        if any(record["kind"] == "note" for record in fresh):
            self.client.log_artifact(run, str(journal.folder / tracking.LOG))

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
        ended = max(journal.records[-1]["time"] for journal in journals)
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
    if journal.shipped < len(journal.records):
        store.send(journal)
        journal.remember(done=False)
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
    journal.remember(done=True)
    shutil.rmtree(journal.folder / "files", ignore_errors=True)
    return True


@dataclass(frozen=True)
class Outcome:
    """What one look at all journals found."""

    seen: set[Path]
    live: bool
    waiting: bool
    problems: list[str]


def tick(store: Store, *, leaving: bool) -> Outcome:
    """Looks at all journals once; closes the pipelines that ended or, when `leaving`, have no stage at work."""
    seen = set(tracking.journal_folders(store.root))
    journals: list[Journal] = []
    done: set[Path] = set()
    problems: list[str] = []
    for folder in sorted(seen):
        with _noting(problems):
            journal = tracking.read_journal(folder)
            if not journal.records:  # a power loss took what was not yet on the disk
                if not journal.alive:
                    journal.discard()
                continue
            journals.append(journal)
            if journal.done or ship(store, journal):
                done.add(folder)
    for pipeline in {journal.start["pipeline"] for journal in journals}:
        members = [journal for journal in journals if journal.start["pipeline"] == pipeline]
        over = leaving or not any(journal.pipeline_alive for journal in members)
        if over and done.issuperset(journal.folder for journal in members):
            with _noting(problems):
                store.end_pipeline(members)
                for journal in members:
                    journal.discard()
    live = any(journal.alive for journal in journals)
    waiting = any(journal.end and journal.folder not in done for journal in journals)
    return Outcome(seen, live, waiting, problems)


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Notes a failure and goes on: whatever it is, the journal stays and the others are not held up."""
    try:
        yield
    except Exception as error:
        lines = redacted(f"{type(error).__name__}: {error}").splitlines()
        problems.append(next((line for line in lines if "sqlite3." in line), lines[0]))


def drain(store: Store, *, once: bool) -> Outcome:
    """Ships until nothing is left to come, or the store has failed for long; with `once`, what there is now."""
    busy = well = time.monotonic()
    pause = PAUSE_SECONDS
    while True:
        outcome = tick(store, leaving=once)
        now = time.monotonic()
        with suppress(OSError):
            database.note_trouble(store.root, outcome.problems[0] if outcome.problems else None)
        if outcome.problems:
            log.warning("%d journals wait: %s", len(outcome.problems), outcome.problems[0])
            if once or (not outcome.live and now - well > GIVE_UP_SECONDS):
                return outcome
            busy, pause = now, min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            well, pause = now, PAUSE_SECONDS
            if once and not outcome.waiting:
                return outcome
            if outcome.live or outcome.waiting:
                busy = now
            elif now - busy > LINGER_SECONDS:
                return tick(store, leaving=True)
        time.sleep(pause)


def main() -> int:
    """Drains the journals of a repository, unless another process is at it."""
    parser = argparse.ArgumentParser(prog="python -m flows.watch.shipper", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, metavar="ROOT", help="the repository's root")
    parser.add_argument("--once", action="store_true", help="send what there is, then leave")
    args = parser.parse_args()
    root = args.root.resolve()
    logging.basicConfig(level=logging.ERROR if args.once else logging.INFO, format="%(asctime)s %(message)s")
    os.nice(10)  # the cores are for training

    tracking.journals(root).mkdir(parents=True, exist_ok=True)
    with tracking.lock_of_shipper(root).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        for gone in tracking.journals(root).glob(".*.gone"):
            shutil.rmtree(gone)
        store = Store(root)
        outcome = drain(store, once=args.once)
    # A stage that found the lock held has started no shipper of its own.
    if outcome.live or set(tracking.journal_folders(root)) - outcome.seen:
        tracking.start_shipper(root)
    if args.once and outcome.problems:
        place = redacted(store.uri)
        print(f"journals kept, not shipped to {place}: {outcome.problems[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
