"""The two local web pages: Prefect's runs and MLflow's comparisons, with a worker for the pipeline.

`python -m flows.pages` starts both servers and the worker as children, waits, and ends them all when it is
interrupted. Both stand behind a gate (`flows.pages.gate`) that asks for the user's login. No telemetry leaves the
machine. Nothing else needs these servers: stages run the same without them.
"""

import argparse
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from flows.local import api, private, tracking
from flows.local.checkout import identity
from flows.local.process import Process, end_groups, stop
from flows.local.sqlite_file import ARTIFACTS
from flows.pages import addresses, gate
from flows.watch import database
from flows.watch.journal import journal_folders, lock_of_postman, start_postman

POOL = "fmcore"
CHILDREN = "ui-children.json"
DEPLOYMENT = "reflow-pipeline/reflow-pipeline"
SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
MLFLOW_HOSTS = ",".join(f"{name},{name}:*" for name in gate.NAMES)
START_SECONDS = 120.0
POSTMAN_SECONDS = 20.0  # the postman holds its lock for as long as it works, but makes the database first


def environment(root: Path, prefect_port: int, login: str | None) -> dict[str, str]:
    """Return the environment of the servers and the worker, our settings over the caller's."""
    page = f"http://127.0.0.1:{prefect_port}"
    caller = {key: value for key, value in os.environ.items() if key not in (api.AUTH, SERVER_AUTH)}
    shown = {api.AUTH: login, SERVER_AUTH: login} if login else {}
    return (caller | shown | api.past_proxies()) | {
        gate.LOGIN: login or gate.OFF,
        # prefect.yaml names the deployed folder as $PWD, which a change of folder alone does not set.
        "PWD": str(root),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # The user's own Prefect profile and database stay untouched.
        "PREFECT_HOME": str(root / "work" / "prefect-home"),
        api.URL: f"{page}/api",
        # Relative, so that the page also works as http://localhost and through `ssh -L`, other origins each.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": page,
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # of 10: a click on Run shows its effect sooner
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DVC_NO_ANALYTICS": "1",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the servers and the worker until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m flows.pages", description=__doc__.partition("\n")[0])
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=tracking.PORT)
    parser.add_argument("--no-login", action="store_true", help="ask for none: on a machine that nobody shares")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal may be closed
        signal.signal(number, _leave)
    root, beside = Path.cwd(), addresses.team()
    if beside.prefect and beside.mlflow:
        print("\n".join([*beside.lines, "nothing is to be started"]))
        return 0
    try:
        login = None if options.no_login else _login()
        with ExitStack() as stack:
            stack.enter_context(_alone(root))
            prefect, mlflow = (
                [stack.enter_context(each) for each in ([] if elsewhere else _held(bind, port, name))]
                for bind, port, name, elsewhere in (
                    (gate.bound, options.prefect_port, "prefect", beside.prefect),
                    (partial(gate.bound, one=True), options.mlflow_port, "mlflow", beside.mlflow),
                )
            )
            _Servers(root, prefect, mlflow, login, beside).run()
    except KeyboardInterrupt:
        print("\nstopped")
        return 0
    except _StartError as error:
        print(error, file=sys.stderr)
        return 1


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps a second one from this checkout, and ends what one that was killed has left."""
    work = root / "work"
    try:
        work.mkdir(exist_ok=True)
        lock = (work / "ui.lock").open("a+")
    except OSError as error:
        raise _StartError(f"{work} cannot be written: {error.strerror}") from None
    with lock:
        if not _locks(lock):
            raise _StartError(addresses.up_already(root, lock))
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        if left := end_groups(_left(root)):
            print(f"ended what an earlier start had left: {left} processes", flush=True)
        yield
        (work / CHILDREN).unlink(missing_ok=True)


def _left(root: Path) -> list[Process]:
    """The children that were noted by one who did not take the note away."""
    path = root / "work" / CHILDREN
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        noted = json.loads(path.read_text())
        # In a copy of a checkout, they are the original's.
        return [Process(*each) for each in noted["children"]] if noted["folder"] == identity(path.parent) else []
    return []


def _login() -> str:
    try:
        return private.made_login()
    except (OSError, ValueError) as error:
        raise _StartError(str(error)) from None


class _StartError(RuntimeError):
    """Something did not come up, or ended; the message says where its log is."""


def _held(bind: Callable[[int], list[socket.socket]], port: int, whose: str) -> list[socket.socket]:
    try:
        return bind(port)
    except OSError:
        raise _StartError(f"port {port} is in use; choose another with --{whose}-port") from None


def _leave(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


class _Servers:
    """The servers and the worker of a checkout, but for those that a team has elsewhere."""

    def __init__(
        self,
        root: Path,
        prefect: Sequence[socket.socket],
        mlflow: Sequence[socket.socket],
        login: str | None,
        beside: addresses.Team,
    ) -> None:
        self.root, self.sockets, self.mlflow_socket = root, prefect, next(iter(mlflow), None)
        self.login, self.beside = login, beside
        self.env = environment(root, prefect[0].getsockname()[1] if prefect else 0, login)
        self.page = f"http://127.0.0.1:{mlflow[0].getsockname()[1]}" if mlflow else ""
        self.logs = root / "work" / "logs"
        self.children: dict[str, subprocess.Popen[str]] = {}
        self.stack = ExitStack()

    def run(self) -> NoReturn:
        """Starts them all, says where they are, and looks after them until it is interrupted."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with self.stack as stack:
            # In reverse, so that the runs a worker ends can still say so to the server.
            stack.callback(_stop_reversed, self.children)
            print(f"starting {' and '.join(self._names())} ...", flush=True)
            if self.sockets:
                handles = [each.fileno() for each in self.sockets]
                self._start("prefect", ["flows.pages.gate", *map(str, handles)], handles)
            if self.mlflow_socket:
                _initialise(self.root, self.env, self.logs / "setup.log")
                self._start("mlflow", self._mlflow(), stdin=self.mlflow_socket.fileno())
            address = self.env[api.URL] if self.sockets else ""
            if address:
                _wait(self.children, self.logs, lambda: api.is_healthy(address))
            self._note(address)
            if address:
                self._deploy(address)
                worker = ["prefect", "worker", "start", "--pool", POOL, "--name", "local"]
                self._start("worker", worker)
            if self.page:
                _wait(self.children, self.logs, lambda: api.asked(self.page, "/health")[0] in (200, 401))
            logs = self.logs.relative_to(self.root)
            addresses.say_where(address.removesuffix("/api"), self.page, self.login, logs, self.beside)
            while True:
                _check(self.children, self.logs)
                time.sleep(0.5)

    def _names(self) -> list[str]:
        return ["Prefect"] * bool(self.sockets) + ["MLflow"] * bool(self.mlflow_socket)

    def _start(
        self, name: str, module: list[str], handles: Sequence[int] = (), stdin: int = subprocess.DEVNULL
    ) -> None:
        log = self.stack.enter_context((self.logs / f"{name}.log").open("w"))
        # Behind a shell's & interrupts are ignored, and a worker that inherits this does not end when asked.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.children[name] = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=self.root, env=self.env, stdin=stdin, stdout=log, stderr=log,
            start_new_session=True, pass_fds=handles, text=True,
        )  # fmt: skip
        signal.signal(signal.SIGINT, before)
        known = [Process.of(psutil.Process(child.pid)) for child in self.children.values()]
        path = self.root / "work" / CHILDREN
        path.write_text(json.dumps({"folder": identity(path.parent), "children": known}))

    def _mlflow(self) -> list[str]:
        """Its standard input is the socket: the one handle that MLflow passes on to its server."""
        return [
            *("mlflow", "server", "--uvicorn-opts", "--fd 0", "--workers", "1"),
            *("--backend-store-uri", tracking.address(self.root)),
            *("--default-artifact-root", str(self.root / ARTIFACTS)),
            *("--app-name", "fmcore", "--allowed-hosts", MLFLOW_HOSTS),
        ]

    def _note(self, address: str) -> None:
        """Notes the servers for the stages of this checkout."""
        first = self.children["prefect" if address else "mlflow"]
        server = Process.of(psutil.Process(first.pid))
        api.write_record(self.root, api.Record(address, *server, login=self.login is not None, mlflow=self.page))
        self.stack.callback(api.record_file(self.root).unlink, missing_ok=True)

    def _deploy(self, address: str) -> None:
        """Deploys if it must; again would drop the schedules that were made or switched on in the page."""
        found = api.asked(address, f"/deployments/name/{DEPLOYMENT}", self.login, seconds=30.0)
        if _is_deployed(self.root, *found):
            return
        for step in (["work-pool", "create", POOL, "--type", "process", "--overwrite"], ["deploy", "--all"]):
            command = [sys.executable, "-m", "prefect", "--no-prompt", *step]
            _call(command, self.root, self.env, self.logs / "setup.log")


def _stop_reversed(children: dict[str, subprocess.Popen[str]]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave some of them running
    for process in reversed(children.values()):
        stop([process])


def _is_deployed(root: Path, status: int, text: bytes) -> bool:
    """Tell by the API's answer whether the deployment exists and runs this checkout's prefect.yaml here."""
    from ruamel.yaml import YAML

    if status == 404:
        return False
    if status != 200:
        raise _StartError(f"the Prefect API does not tell its deployments (status {status}); is the login right?")
    found: dict[str, Any] = json.loads(text)
    wanted = {each["name"]: each for each in YAML(typ="safe").load(root / "prefect.yaml")["deployments"]}
    pulls = [step for pull in found["pull_steps"] or [] for step in pull.values()]
    return (
        found["entrypoint"] == wanted[found["name"]]["entrypoint"]
        and found["work_pool_name"] == POOL
        and [pull.get("directory") for pull in pulls] == [str(root)]
    )


def _initialise(root: Path, env: Mapping[str, str], log: Path) -> None:
    """Make MLflow's database if there is none, unless the postman is at work, which makes it itself."""
    existed = (root / tracking.NAME).exists()
    lock = lock_of_postman(root)
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + POSTMAN_SECONDS
    with lock.open("a") as held:
        while not _locks(held):
            if existed or time.monotonic() > deadline:
                return
            time.sleep(0.2)
        try:
            with log.open("a") as output:
                database.make(root, env, output)
        except OSError as error:
            raise _StartError(str(error)) from None
        except subprocess.CalledProcessError:
            raise _StartError(f"MLflow's database was not made, see {log.relative_to(root)}") from None
    if journal_folders(root):  # their stages took this process for the postman
        start_postman(root)


def _locks(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _call(command: list[str], root: Path, env: Mapping[str, str], log: Path) -> None:
    with log.open("a") as output:
        done = subprocess.run(
            command, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        raise _StartError(f"`{' '.join(command[2:5])}` failed, see {log.relative_to(root)}")


def _wait(children: Mapping[str, subprocess.Popen[str]], logs: Path, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_up():
        _check(children, logs)
        if time.monotonic() > deadline:
            raise _StartError(f"not up after {START_SECONDS:.0f} s, see {logs}")
        time.sleep(0.2)


def _check(children: Mapping[str, subprocess.Popen[str]], logs: Path) -> None:
    for name, process in children.items():
        if process.poll() is not None:
            log = logs / f"{name}.log"
            cure = database.cure(log.read_text()[-5000:]) if name == "mlflow" else ""
            raise _StartError(f"{name} ended with {process.returncode}, see {log}{cure}")
