"""Journals become Prefect flow runs, one for each stage; this is the only module that imports Prefect's client.

A run is found again by the journal's name, its idempotency key. Logs and artifacts that may have arrived before a
kill are looked for before they are sent again. What shows how far a stage is comes first: somebody may be looking.
"""

import base64
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.local import tracking
from flows.local.api import Api, api_at, is_healthy
from flows.local.private import is_loopback
from flows.watch import journal as journals
from flows.watch.journal import Journal, Record
from flows.watch.letterbox import Outcome, noting
from flows.watch.progress import curve, pace, thinned
from fmcore.flow.errors import first_line

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

CALL_SECONDS = 5.0
LOG_SECONDS = 10.0  # between two log lines of one kind of metrics
INLINE_BYTES = 300_000  # base64 adds a third, and the page keeps all of it in memory
PAGE = 200  # the most that a filter of the API returns
LONGEST = 20_000  # characters of a line of the log
LOSS = "training/loss"
LABEL = "fmcore.mlflow_run"  # of a run of Prefect's
LATER = (401, 403, 408, 409, 429)  # a token that expired, a database that was busy

log = logging.getLogger("flows.watch.to_prefect")


@dataclass
class Known:
    """What of a run the server has: lines of its log, artifacts by key, and when metrics were last logged.

    Besides what progress is told by: the first record of each work that this process saw, and the losses.
    """

    lines: set[tuple[str, str]]
    artifacts: dict[str, str]
    logged: dict[str, float] = field(default_factory=dict)
    held: dict[str, Record] = field(default_factory=dict)
    first: dict[str, Record] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)


class PrefectBox:
    """Prefect's letterbox."""

    reader = "prefect"
    pause_seconds = 1.0

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stack = ExitStack()
        self._clients: dict[str, SyncPrefectClient] = {}
        self._known: dict[str, Known] = {}

    def tick(self, *, leaving: bool) -> Outcome:
        """Looks at all journals once."""
        found: list[Journal] = []
        problems: list[str] = []
        for folder in journals.journal_folders(self.root):
            state = journals.read_state(folder, self.reader)
            if state.get("done") and state.get("linked"):
                continue
            journal = journals.read_journal(folder, self.reader)
            if journal is None or journal.start.get("api") is None:
                continue
            found.append(journal)
            with noting(problems):
                if not journal.done:
                    self._deliver(journal)
                if not journal.state.get("linked"):
                    self._link(journal)
        live = any(journal.alive for journal in found)
        return Outcome(live, any(journal.end and not journal.done for journal in found), problems)

    def close(self) -> None:
        """Closes the connections."""
        self._stack.close()

    def _deliver(self, journal: Journal) -> None:
        """Tells the server what is new."""
        client = self._client(journal.start["api"], journal.state.get("own", False))
        if "run" not in journal.state:
            with refused():
                self._create(client, journal)
            if "run" not in journal.state:
                journal.remember(done=True)
                return
        known = self._known_of(client, journal)
        self._send(client, journal, known)
        if journal.end is not None:
            _set_state(client, journal.state["run"], journal.end)
            journal.remember(done=True)
            self._known.pop(journal.folder.name, None)
        elif journal.fresh:
            journal.remember()

    def _link(self, journal: Journal) -> None:
        """Says on a stage's run what MLflow calls the run with its numbers, once that is known."""
        mlflow, run = journals.read_state(journal.folder, "mlflow"), journal.state.get("run")
        if run and (other := mlflow.get("run")):
            client = self._client(journal.start["api"], journal.state.get("own", False))
            self._known_of(client, journal)
            page = tracking.page(self.root)
            link = tracking.page_of_run(page, mlflow["experiment"], other) if page else ""
            text = f"[the run with this stage's numbers]({link})" if link else f"MLflow's run `{other}`"
            self._show(client, journal, "mlflow", "markdown", text)
            with refused():
                client.update_flow_run_labels(uuid.UUID(run), {LABEL: other})
        elif not mlflow.get("closed") and not (journal.done and not run):
            return
        journal.remember(linked=True)
        if journal.done:
            self._known.pop(journal.folder.name, None)

    def _client(self, address: str, own: bool) -> "SyncPrefectClient":
        """A client of that API, once it answers; `own` if it was this user's before, and must be so still.

        Raises:
            ConnectionError: if it does not, or if another user listens there.
        """
        api = api_at(self.root, address)
        if not api.may_be_asked() or (own and not api.own):
            raise ConnectionError(f"no server of this user listens at {address}")
        if address not in self._clients:
            if not is_healthy(api.address, api.login):
                raise ConnectionError(f"no Prefect API answers at {address}")
            self._clients[address] = self._stack.enter_context(_client(api))
        return self._clients[address]

    def _create(self, client: "SyncPrefectClient", journal: Journal) -> None:
        start = journal.start
        body = {
            "flow_id": str(client.create_flow_from_name(start["stage"].partition("@")[0])),
            "name": start["stage"],
            "tags": [f"dvc:{start['stage']}"],
            "parameters": start["params"],
            "parent_task_run_id": start["parent_task_run"],
            "state": {"type": "RUNNING", "name": "Running"},
            "idempotency_key": journal.folder.name,  # asked twice, the server makes one run
        }
        run = str(client.request("POST", "/flow_runs/", json=body).json()["id"])
        api = api_at(self.root, start["api"])
        tags = {"prefect.flow_run_id": run, "prefect.flow_run_url": _page_of(run, api)}
        parent = start.get("parent_flow_run")
        above = {"prefect.flow_run_id": parent, "prefect.flow_run_url": _page_of(parent, api)} if parent else {}
        journal.state.update(run=run, own=api.own, tags=tags, above=above)
        journals.write_state(journal.folder, self.reader, journal.state)

    def _known_of(self, client: "SyncPrefectClient", journal: Journal) -> Known:
        """What the server has of a run, asked once by each process."""
        if journal.folder.name not in self._known:
            of_run = {"flow_run_id": {"any_": [journal.state["run"]]}}
            lines = {
                (_iso(datetime.fromisoformat(line["timestamp"]).timestamp()), line["message"])
                for line in pages(client, "/logs/filter", {"logs": of_run})
            }
            artifacts = {
                found["key"]: found["id"] for found in pages(client, "/artifacts/filter", {"artifacts": of_run})
            }
            self._known[journal.folder.name] = Known(lines, artifacts)
        return self._known[journal.folder.name]

    def _send(self, client: "SyncPrefectClient", journal: Journal, known: Known) -> None:
        """Sends the fresh records: progress, of which the last counts, pictures and tables, then the log."""
        progress = {record.of["what"]: record for record in journal.fresh if record.kind == "progress"}
        for record in journal.fresh:
            if record.kind == "progress":
                known.first.setdefault(record.of["what"], record)
        for what, record in progress.items():
            done, total = record.of["done"], record.of["total"]
            told = pace(known.first[what], record)
            self._show(client, journal, what, "progress", 100.0 * done / total if total else 100.0, told)
        self._draw(client, journal, known)
        lines: list[tuple[float, str]] = []
        for record in journal.fresh:
            match record.kind:
                case "picture":
                    path = journal.folder / record.of["files"] / f"pictures/{record.of['name']}.png"
                    self._show(client, journal, record.of["name"], "markdown", _picture(record.of["name"], path))
                case "table":
                    self._show(client, journal, record.of["name"], "table", json.dumps(record.of["rows"]))
                case "metrics" | "progress":
                    lines += _sometimes(record, known)
                case _ if text := _text(record):
                    lines.append((record.time, text))
        if journal.end is not None:
            lines += [(held.time, _text(held)) for held in known.held.values()]
            known.held.clear()
        name, run = f"fmcore.{journal.start['stage']}", journal.state["run"]
        texts = [(_iso(at), text[:LONGEST]) for at, text in lines]
        fresh = [line for line in texts if line not in known.lines]
        for first in range(0, len(fresh), PAGE):
            part = fresh[first : first + PAGE]
            with refused():
                client.create_logs(
                    [
                        {"name": name, "level": 20, "message": text, "timestamp": at, "flow_run_id": run}
                        for at, text in part
                    ]
                )
            known.lines.update(part)

    def _draw(self, client: "SyncPrefectClient", journal: Journal, known: Known) -> None:
        """Shows the loss as a curve, anew every ten seconds and at the end."""
        fresh = [
            (float(record.of["step"]), float(record.of["values"][LOSS]))
            for record in journal.fresh
            if record.kind == "metrics" and LOSS in record.of["values"] and not record.of.get("of")
        ]
        if not fresh:
            return
        known.losses = thinned(known.losses + [(step, loss) for step, loss in fresh if isfinite(loss)])
        now = journal.fresh[-1].time
        if len(known.losses) > 1 and (journal.end or now - known.logged.get(LOSS, 0.0) > LOG_SECONDS):
            known.logged[LOSS] = now
            self._show(client, journal, "loss", "markdown", curve(known.losses, "loss"))

    def _show(
        self,
        client: "SyncPrefectClient",
        journal: Journal,
        name: str,
        kind: str,
        data: str | float,
        more: str = "",
    ) -> None:
        """Makes an artifact of the run, or changes the one that is there; `more` is told beside its name."""
        stage, known = journal.start["stage"], self._known[journal.folder.name].artifacts
        key = re.sub(r"[^a-z0-9]+", "-", f"{stage}-{name}".lower()).strip("-")
        # The client's own create_artifact also emits an event over a websocket.
        about = f"{name} of stage {stage}" + (f": {more}" if more else "")
        body = {"key": key, "type": kind, "data": data, "description": about}
        with refused():
            if key in known:
                new = {"data": data} | ({"description": about} if more else {})
                client.request("PATCH", "/artifacts/{id}", path_params={"id": known[key]}, json=new)
            else:
                answer = client.request("POST", "/artifacts/", json=body | {"flow_run_id": journal.state["run"]})
                known[key] = answer.json()["id"]


@contextmanager
def refused() -> Iterator[None]:
    """Goes on where the server will never take a record; what it may take another time is asked again."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in LATER or status >= 500:
            raise
        log.warning("Prefect refused a record: %s", first_line(error))


def _client(api: Api) -> Any:
    """A client that shows its login to this user's server only, and asks once."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # read when prefect is imported
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    def guarded(request: httpx.Request) -> None:
        """Before each request: the server may have ended, and another user taken its port."""
        if not api.may_be_asked():
            raise httpx.ConnectError("no server of this user listens there", request=request)

    settings: dict[Any, Any] = {
        PREFECT_API_URL: api.address,
        PREFECT_API_AUTH_STRING: api.login,
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    options: dict[str, Any] = {"timeout": CALL_SECONDS, "event_hooks": {"request": [guarded]}}
    if is_loopback(api.address):  # a proxy would be shown the login
        options["trust_env"] = False
    with temporary_settings(settings):
        return get_client(sync_client=True, httpx_settings=options)


def _page_of(run: str, api: Api) -> str:
    """Where that API's own page shows a run."""
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.utilities.urls import url_for

    with temporary_settings({PREFECT_API_URL: api.address}):
        return url_for("flow-run", obj_id=run) or api.address


def pages(client: "SyncPrefectClient", path: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All that a filter finds."""
    found: list[dict[str, Any]] = []
    while True:
        part = client.request("POST", path, json=body | {"limit": PAGE, "offset": len(found)}).json()
        found += part
        if len(part) < PAGE:
            return found


def _set_state(client: "SyncPrefectClient", run: str, end: dict[str, Any]) -> None:
    from prefect.client.schemas.objects import State, StateType

    kind, message = {
        "FINISHED": ("COMPLETED", ""),
        "FAILED": ("FAILED", end.get("message", "")),
        "KILLED": ("CANCELLED", end.get("message", "")),
    }[end["status"]]
    if end.get("silent"):
        kind, message = "CRASHED", "its process was killed"
    # Forced, because what the process did is a fact, not a request.
    client.set_flow_run_state(uuid.UUID(run), State(type=StateType(kind), message=message), force=True)


def _sometimes(record: Record, known: Known) -> list[tuple[float, str]]:
    """The line of metrics or progress, if it is time for another; else it is held, for the last one matters."""
    whole = record.kind == "progress" and record.of["done"] == record.of["total"]
    key = record.of["what"] if record.kind == "progress" else " ".join(sorted(record.of["values"]))
    if not whole and record.time - known.logged.get(key, 0.0) < LOG_SECONDS:
        known.held[key] = record
        return []
    known.held.pop(key, None)
    known.logged[key] = record.time
    return [(record.time, _text(record))]


def _text(record: Record) -> str:
    """A record as a line of the log; empty for what is shown otherwise."""
    match record.kind, record.of:
        case "metrics", {"step": step, "values": values}:
            return f"step {step}: " + ", ".join(f"{name} {_number(value)}" for name, value in values.items())
        case "progress", {"what": what, "done": done, "total": total, "unit": unit}:
            return f"{what}: {done} of {total} {unit}"
        case "note", {"text": text}:
            return str(text)
        case "tag", {"name": name, "text": text}:
            return f"{str(name).removeprefix('fmcore.')}: {text}"
        case "model", {"name": name, "path": path}:
            return f"model {name} is ready in {path}"
    return ""


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float | int) else str(value)


def _picture(name: str, path: Path) -> str:
    try:
        if path.stat().st_size > INLINE_BYTES:
            return f"`{name}` is too large to show here; MLflow has it"
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return f"`{name}` cannot be read"
    return f"![{name}](data:image/png;base64,{data})"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
