"""Which Prefect API the stages of this checkout talk to, and what login they show it.

`PREFECT_API_URL` names one. Otherwise it is the one that `make ui` started in this checkout and noted in
`work/ui.json`, if that server still runs; never whatever happens to answer on a port, which may be another
checkout's or another user's.
"""

import base64
import http.client
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from flows.local import private
from flows.local.checkout import identity
from flows.local.process import Process, redacted

FOLDER = "folder"  # of the record: which one it was written in
URL, AUTH = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"


class Api(NamedTuple):
    """A Prefect API; `own` says that its login is that of `flows.local.private`, for this user's server only."""

    address: str
    login: str | None = None
    own: bool = False

    def may_be_asked(self) -> bool:
        """Whether the login may be shown to whoever listens there now; if the kernel does not tell who, it may."""
        if not (self.login and self.own) or not private.kernel_tells():
            return True
        return private.listener_is_mine(self.address)


class Record(NamedTuple):
    """What `make ui` notes of the Prefect server it runs, and where MLflow's page is.

    Where a team has the one and this checkout the other, `address` or `mlflow` is empty; `pid` is of the server
    that runs here.
    """

    address: str
    pid: int
    started: float
    login: bool
    mlflow: str = ""


def record_file(root: Path) -> Path:
    """Where `make ui` notes its server."""
    return root / "work" / "ui.json"


def write_record(root: Path, record: Record) -> None:
    """Notes a server, for this user's eyes only."""
    path = record_file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(record._asdict() | {FOLDER: identity(path.parent)}, file)
    part.replace(path)


def running(root: Path) -> Record | None:
    """The server that `make ui` runs in this checkout, if it does."""
    path = record_file(root)
    try:
        if not private.is_private(path):
            return None
        noted = json.loads(path.read_text())
        if noted.pop(FOLDER, None) != identity(path.parent):  # a copy, of the checkout that the server is of
            return None
        record = Record(**noted)
        return record if Process(record.pid, record.started).alive() else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def live_api(root: Path) -> Api | None:
    """The API to tell of the runs in this checkout, None where none answers within two seconds."""
    given, login = os.environ.get(URL), os.environ.get(AUTH)
    if given and login:
        api = Api(given, login, own=_is_mine(login))
    elif given:
        api = Api(given, private.login(), own=True) if private.listener_is_mine(given) else Api(given)
    elif (record := running(root)) and record.address:
        api = Api(record.address, private.login() if record.login else None, own=True)
    else:
        return None
    if api.may_be_asked() and is_healthy(api.address, api.login):
        return api
    if given:
        print(f"no Prefect API answers at {redacted(given)} ({URL})", file=sys.stderr)
    return None


def address_of(root: Path) -> str | None:
    """The API that the runs of this checkout are for, without a login; whether it answers is not asked."""
    if given := os.environ.get(URL):
        return redacted(given)
    record = running(root)
    return record.address or None if record else None


def mlflow_of(root: Path) -> str | None:
    """The address of MLflow's page, if `make ui` runs in this checkout."""
    record = running(root)
    return record.mlflow or None if record else None


def api_at(root: Path, address: str) -> Api:
    """The API at an address that `address_of` gave, with the login that may be shown to it."""
    given, login = os.environ.get(URL, ""), os.environ.get(AUTH)
    if redacted(given) == address:
        if login:
            return Api(given, login, own=_is_mine(login))
        return Api(given, private.login(), own=True) if private.listener_is_mine(given) else Api(given)
    record = running(root)
    if record and record.address == address and not record.login:
        return Api(address)
    return Api(address, private.login(), own=True)


def _is_mine(login: str) -> bool:
    """Whether a login is the user's own, as it is in what `make ui` starts."""
    with suppress(OSError, ValueError):
        return login == private.login()
    return False


def past_proxies() -> dict[str, str]:
    """What an environment needs, so that no client sends what is meant for this machine through a proxy."""
    named = {"127.0.0.1", "localhost", "::1"}
    for name in ("NO_PROXY", "no_proxy"):
        named.update(filter(None, (part.strip() for part in os.environ.get(name, "").split(","))))
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(sorted(named)))


def is_healthy(address: str, login: str | None = None) -> bool:
    """Tell whether a Prefect API answers at `address`, within two seconds; the login is not shown."""
    status, text = asked(address, "/health")
    # Some servers ask for the login even here; if there is one to show, a 401 counts as an answer.
    return (status == 200 and text == b"true") or (status == 401 and bool(login))


def asked(address: str, path: str, login: str | None = None, seconds: float = 1.5) -> tuple[int, bytes]:
    """Return status and text of a page of a Prefect API; status 0 if no answer comes within `seconds`."""
    try:
        parts = urlsplit(address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=0.5 if private.is_loopback(address) else 1.5)
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            shown = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
            connection.request("GET", parts.path.rstrip("/") + path, headers=shown)
            answer = connection.getresponse()
            return answer.status, answer.read(1_000_000).strip()
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return 0, b""
