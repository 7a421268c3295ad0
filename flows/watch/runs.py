"""The record of a stage in Prefect: a flow run with its state, progress, log and artifacts.

Prefect watches, it never decides. All calls to its API are made by one daemon thread, so a server that is
absent, slow or dies half-way costs the stage at most `OPEN_SECONDS` at the start and `CLOSE_SECONDS` (and the
import, see below) at the end, and never its outcome. Running the stage inside Prefect's engine instead would end
a finished training with an error whenever the server is gone at the end.

Where a server answers, the end also waits for the thread to have imported Prefect. The interpreter, when it
leaves, stops its daemon threads wherever they are, and in compiled code of another language, such as the
validation that Prefect's import runs through, that aborts the process: a finished stage would count as failed.
Waiting for an answer is no such place.

What could not be delivered is kept in `work/prefect/<stage>.json`; the next stage to start settles it.
"""

import base64
import json
import math
import os
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psutil

from flows.events import Event, Metrics, ModelReady, Note, Picture, Progress, Table, Tag
from flows.local.api import Api, live_api
from flows.local.private import is_loopback
from flows.local.process import Process, redacted

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

OPEN_SECONDS = 1.5
CLOSE_SECONDS = 4.5
LAST_SECONDS = 0.5  # of `CLOSE_SECONDS`, for the thread to notice that it is waited for no longer
PROGRESS_SECONDS = 2.0
LOG_SECONDS = 10.0
INLINE_BYTES = 300_000  # base64 adds a third, and the page keeps all of it in memory
BACKLOG = 1000

Call = Callable[["SyncPrefectClient"], object]


class Final(NamedTuple):
    """How a run ended: Prefect's state `type` and the `message` shown beside it."""

    type: str
    message: str


class Left(NamedTuple):
    """An open run as `work/prefect/<stage>.json` keeps it."""

    api: str
    flow_run_id: str
    pid: int
    create_time: float
    final: Final | None


def open_run(root: Path, *, stage: str, parameters: Mapping[str, object]) -> "Run":
    """Start recording `stage` with its `parameters`; the result is inert when no API answers."""
    run = Run(root, stage, parameters)
    run.checked.wait(OPEN_SECONDS)
    return run


class Run:
    """The open record of one stage: call it with events, close it with the stage's error or None."""

    def __init__(self, root: Path, stage: str, parameters: Mapping[str, object]) -> None:
        self.checked = threading.Event()  # it is known whether an API answers
        self._created = threading.Event()  # the flow run exists, or never will
        self._imported = threading.Event()  # Prefect is imported, or never will be
        self._closing = threading.Event()
        self._given_up = threading.Event()  # close() waits no longer; the thread is to begin nothing
        self._deadline = time.monotonic() + OPEN_SECONDS
        self._root = root
        self._record = root / "work" / "prefect" / f"{stage}.json"
        self._lock = threading.Lock()  # of the record's file
        self._stage = stage
        self._parameters = parameters
        self._api: Api | None = None
        self._run = ""
        self._tags: dict[str, str] = {}
        self._final: Final | None = None
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._sent: dict[str, float] = {}
        self._held: dict[str, str] = {}
        self._progress: dict[str, str] = {}  # the artifacts, which are updated in place
        self._thread = threading.Thread(target=self._work, name=f"prefect {stage}", daemon=True)
        self._thread.start()

    @property
    def tags(self) -> dict[str, str]:
        """The flow run's id and address, which other records of the stage may carry; {} when not live."""
        self._created.wait(max(0.0, self._deadline - time.monotonic()))
        return dict(self._tags)

    def __call__(self, event: Event) -> None:
        """Queue what `event` shows in Prefect; never waits for the server."""
        if not self._thread.is_alive():
            return
        match event:
            case Progress(what, done, total):
                if done in (0, total) or self._is_due(f"progress {what}", PROGRESS_SECONDS):
                    self._show(what, "progress", 100.0 * done / total if total else 100.0)
                self._log_sometimes(what, f"{what}: {done} of {total} {event.unit}", now=done == total)
            case Metrics(step, values):
                text = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                self._log_sometimes(f"metrics {sorted(values)}", f"step {step}: {text}")
            case Note(text):
                self._log(text)
            case Tag(name, text):
                self._log(f"{name}: {text}")
            case Table(name, rows):
                self._show(name, "table", json.dumps(_plain(rows)))
            case Picture(name, path):
                self._show(name, "markdown", _picture(name, path))
            case ModelReady(name, path):
                self._log(f"model {name} is ready in {path}")

    def close(self, error: BaseException | None) -> None:
        """Record the end of the stage: completed, failed with `error`, or cancelled."""
        for text in self._held.values():
            self._log(text)
        self._held.clear()
        self._final = _final(error)
        if self._run:
            self._keep()
        self._closing.set()
        self._calls.put(None)
        began = time.monotonic()
        if self.checked.wait(CLOSE_SECONDS - LAST_SECONDS):
            left = CLOSE_SECONDS - LAST_SECONDS - (time.monotonic() - began)
            self._imported.wait()
            self._thread.join(max(0.0, left))
        self._given_up.set()
        if self.checked.is_set():  # else the thread sees that it is too late before it begins the import
            self._imported.wait()
        self._thread.join(LAST_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    # What the stage's thread asks for.

    def _put(self, call: Call) -> None:
        if self._calls.qsize() < BACKLOG:
            self._calls.put(call)

    def _is_due(self, key: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._sent.get(key, -math.inf) < seconds:
            return False
        self._sent[key] = now
        return True

    def _log_sometimes(self, key: str, text: str, *, now: bool = False) -> None:
        if now or self._is_due(f"log {key}", LOG_SECONDS):
            self._held.pop(key, None)
            self._log(text)
        else:
            self._held[key] = text  # the last value matters: close() logs it

    def _log(self, text: str) -> None:
        now = datetime.now(UTC).isoformat()
        line = {"name": f"fmcore.{self._stage}", "level": 20, "message": text[:20_000], "timestamp": now}
        self._put(lambda client: client.create_logs([line | {"flow_run_id": self._run}]))

    def _show(self, name: str, kind: str, data: str | float) -> None:
        body = {"key": _slug(f"{self._stage}-{name}"), "type": kind, "data": data}

        # The client's own create_artifact also emits an event over a websocket, whose thread stalls the
        # end of the process when the server is gone.
        def call(client: "SyncPrefectClient") -> None:
            if progress := self._progress.get(name):
                client.request("PATCH", "/artifacts/{id}", path_params={"id": progress}, json={"data": data})
                return
            more = {"description": f"{name} of stage {self._stage}", "flow_run_id": self._run}
            answer = client.request("POST", "/artifacts/", json=body | more)
            if kind == "progress":
                self._progress[name] = answer.json()["id"]

        self._put(call)

    # What the daemon thread does.

    def _work(self) -> None:
        try:
            self._api = live_api(self._root)
            self.checked.set()
            if self._api and not self._given_up.is_set():
                self._talk(self._api)
        except Exception as error:
            _say(f"Prefect does not record {self._stage}: {type(error).__name__}: {_line(error)}")
        finally:
            self.checked.set()
            self._imported.set()
            self._created.set()

    def _talk(self, api: Api) -> None:
        os.environ.setdefault("DO_NOT_TRACK", "1")  # read when prefect is imported
        import httpx
        from prefect.client.orchestration import get_client
        from prefect.settings import (
            PREFECT_API_AUTH_STRING,
            PREFECT_API_URL,
            PREFECT_CLIENT_MAX_RETRIES,
            temporary_settings,
        )
        from prefect.utilities.urls import url_for

        def guarded(request: httpx.Request) -> None:
            """Before each request: the server may have ended, and another user taken its port."""
            if not api.may_be_asked():
                raise httpx.ConnectError("no server of this user listens there", request=request)

        settings = {
            PREFECT_API_URL: api.address,
            PREFECT_API_AUTH_STRING: api.login,
            PREFECT_CLIENT_MAX_RETRIES: 0,
        }
        options: dict[str, Any] = {"timeout": 5.0, "event_hooks": {"request": [guarded]}}
        if is_loopback(api.address):  # a proxy would be shown the login
            options["trust_env"] = False
        self._imported.set()
        with temporary_settings(settings), get_client(sync_client=True, httpx_settings=options) as client:
            _settle(client, self._record.parent, api.address)
            key = str(uuid.uuid4())
            self._deliver(client, lambda client: self._create(client, key))
            if not self._run:
                return
            self._keep()
            page = url_for("flow-run", obj_id=self._run) or api.address
            self._tags = {"prefect.flow_run_id": self._run, "prefect.flow_run_url": page}
            self._created.set()
            for call in iter(self._calls.get, None):
                if not self._deliver(client, call):
                    break  # closing, and the server is gone: only the final state is worth a last try
            final = self._final
            assert final is not None
            if self._deliver(client, lambda client: _set_state(client, self._run, final)):
                self._record.unlink(missing_ok=True)

    def _create(self, client: "SyncPrefectClient", key: str) -> None:
        body = {
            "flow_id": str(client.create_flow_from_name(self._stage.partition("@")[0])),
            "name": self._stage,
            "tags": [f"dvc:{self._stage}"],
            "parameters": _plain(self._parameters),
            "parent_task_run_id": os.environ.get("FMCORE_PARENT_TASK_RUN") or None,
            "state": {"type": "RUNNING", "name": "Running"},
            "idempotency_key": key,  # asked twice, the server makes one run
        }
        self._run = str(client.request("POST", "/flow_runs/", json=body).json()["id"])

    def _keep(self) -> None:
        """Write down the run and its end, so that a later process can report it if this one cannot."""
        assert self._api is not None
        left = Left(
            redacted(self._api.address), self._run, os.getpid(), psutil.Process().create_time(), self._final
        )
        try:
            with self._lock:
                self._record.parent.mkdir(parents=True, exist_ok=True)
                partial = self._record.with_suffix(".part")
                partial.write_text(json.dumps(left._asdict()))
                partial.replace(self._record)
        except OSError as error:
            _say(f"{self._record.name} is not written: {error}")

    def _deliver(self, client: "SyncPrefectClient", call: Call) -> bool:
        """Make `call`, again and again while the server is away; False when closing leaves no time."""
        import httpx

        refused, pause = 0, 1.0
        while not self._given_up.is_set():
            closing = self._closing.is_set()
            try:
                call(client)
                return True
            except httpx.TransportError:
                if closing:
                    return False
            except Exception as error:
                refused += 1
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
                # 403 is an expired token, which the client has renewed; 5xx a database that was busy.
                if status not in (403, 429, 500, 502, 503) or refused == 3:
                    _say(f"Prefect refused a record of {self._stage}: {_line(error)}")
                    return True
            self._closing.wait(pause)
            pause = min(2 * pause, 30.0)
        return False


def _settle(client: "SyncPrefectClient", folder: Path, address: str) -> None:
    """End the runs that were left open on this server: by dead processes, or while it was away."""
    import httpx

    for path in folder.glob("*.json"):
        try:
            left = Left(**json.loads(path.read_text()))
            is_open = left.final is None and Process(left.pid, left.create_time).alive()
            if is_open or left.api != redacted(address):
                continue
            state = client.read_flow_run(uuid.UUID(left.flow_run_id)).state
            if state is None or not state.is_final():
                final = Final(*left.final) if left.final else Final("CRASHED", "its process was killed")
                _set_state(client, left.flow_run_id, final)
        except httpx.HTTPError:
            continue  # another time
        except Exception as error:
            _say(f"dropping {path.name}, which cannot be settled: {_line(error)}")
        path.unlink(missing_ok=True)


def _set_state(client: "SyncPrefectClient", run: str, final: Final) -> None:
    from prefect.client.schemas.objects import State, StateType

    # Forced, because what the process did is a fact, not a request.
    client.set_flow_run_state(run, State(type=StateType(final.type), message=final.message), force=True)


def _final(error: BaseException | None) -> Final:
    match error:
        case None | SystemExit(code=None | 0):
            return Final("COMPLETED", "")
        case KeyboardInterrupt() | SystemExit(code=130 | 143):
            return Final("CANCELLED", "interrupted; the same command resumes it")
        case SystemExit():
            return Final("FAILED", f"exit {error.code}")
    return Final("FAILED", f"{type(error).__name__}: {_line(error)}")


def _picture(name: str, path: Path) -> str:
    try:
        if path.stat().st_size > INLINE_BYTES:
            return f"`{path}`"
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return f"`{path}` cannot be read"
    return f"![{name}](data:image/png;base64,{data})"


def _plain(value: object) -> object:
    """Return `value` as JSON can hold it; numbers JSON lacks become text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    return str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:500]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
