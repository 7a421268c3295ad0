"""The two local web pages: Prefect's runs and MLflow's comparisons, with a worker for the pipeline.

`python -m flows.ui` starts both servers and the worker as children, waits, and ends them all when it is
interrupted. Loopback is no border (any web page may post to it), so Prefect's API demands its CSRF token
and no telemetry leaves the machine. Nothing else needs these servers: stages run the same without them.
"""

import argparse
import base64
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

import psutil

from flows.tracking import Process, journal_folders, lock_of_shipper, redacted, start_shipper

DEFAULT_API = "http://127.0.0.1:4200/api"
POOL = "fmcore"
DEPLOYMENT = "reflow-pipeline/reflow-pipeline"
AUTH, SERVER_AUTH = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"  # the client's, the server's
START_SECONDS = 120.0
GRACE_SECONDS = 10.0
SHIPPER_SECONDS = 20.0  # the shipper holds its lock for as long as it works, but makes the database first


def live_api() -> str | None:
    """Return the address of the Prefect API if one answers within two seconds, else None."""
    address = os.environ.get("PREFECT_API_URL") or DEFAULT_API
    if is_healthy(address):
        return address
    if os.environ.get("PREFECT_API_URL"):
        print(f"no Prefect API answers at {redacted(address)} (PREFECT_API_URL)", file=sys.stderr)
    return None


def is_healthy(address: str) -> bool:
    """Tell whether a Prefect API answers at `address`, within two seconds."""
    status, text = _get(address, "/health")
    # A gate may ask even here who calls; with a password to show, that is an answer.
    return (status == 200 and text == b"true") or (status == 401 and bool(os.environ.get(AUTH)))


def _get(address: str, path: str, auth: str | None = None, seconds: float = 1.5) -> tuple[int, bytes]:
    """Return status and text of a page of a Prefect API; status 0 if no answer comes within `seconds`."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        connection = kind(parts.hostname or "", parts.port, timeout=0.5 if local else 1.5)
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            headers = {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"} if auth else {}
            connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(1_000_000).strip()
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return 0, b""


def environment(root: Path, prefect_port: int) -> dict[str, str]:
    """Return the environment of the servers and the worker, our settings over the caller's."""
    page = f"http://127.0.0.1:{prefect_port}"
    auth = os.environ.get(AUTH) or os.environ.get(SERVER_AUTH)
    caller = os.environ | ({AUTH: auth} if auth else {})
    return caller | {
        # prefect.yaml names the deployed folder as $PWD, which a change of folder alone does not set.
        "PWD": str(root),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # The user's own Prefect profile and database stay untouched.
        "PREFECT_HOME": str(root / "work" / "prefect-home"),
        "PREFECT_API_URL": f"{page}/api",
        # Relative, so that the page also works as http://localhost, which is another origin.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{page},http://localhost:{prefect_port}",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # of 10: a click on Run shows its effect sooner
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DVC_NO_ANALYTICS": "1",
    }


def stop(processes: Iterable[subprocess.Popen[str]], grace: float = GRACE_SECONDS) -> None:
    """End `processes` with all they have started: asked first, killed after `grace` seconds."""
    started = list(processes)
    doomed: dict[Process, psutil.Process] = {}
    for process in started:
        # A process group outlives its leader, and a child may have left the group: take both.
        doomed |= _identified([*_descendants(process.pid), *_group(process.pid)])
    for other in doomed.values():
        _signal(other, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(known.alive() for known in doomed) and time.monotonic() < deadline:
        for process in started:
            process.poll()  # reaps it
            doomed |= _identified(_group(process.pid))
        time.sleep(0.05)
    for other in doomed.values():
        _signal(other, signal.SIGKILL)
    for process in started:
        process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the servers and the worker until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=__doc__.partition("\n")[0])
    parser.add_argument("--prefect-port", type=int, default=4200)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    options = parser.parse_args(arguments)
    for port, option in ((options.prefect_port, "--prefect-port"), (options.mlflow_port, "--mlflow-port")):
        if _is_taken(port):
            print(f"port {port} is in use; choose another with {option}", file=sys.stderr)
            return 1
    signal.signal(signal.SIGTERM, _leave)
    try:
        _serve(Path.cwd(), options.prefect_port, options.mlflow_port)
    except KeyboardInterrupt:
        print("\nstopped")
        return 0
    except _ChildError as error:
        print(error, file=sys.stderr)
        return 1


class _ChildError(RuntimeError):
    """A child ended, or did not come up; the message says where its log is."""


def _leave(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _serve(root: Path, prefect_port: int, mlflow_port: int) -> NoReturn:
    env = environment(root, prefect_port)
    address = env["PREFECT_API_URL"]
    logs = root / "work" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    prefect = [python, "-m", "prefect"]
    store = f"sqlite:///{root / 'mlflow.db'}"
    children: dict[str, subprocess.Popen[str]] = {}

    with ExitStack() as stack:
        # In reverse, so that the runs a worker ends can still say so to the server.
        stack.callback(_stop_reversed, children)

        def start(name: str, command: list[str]) -> None:
            log = stack.enter_context((logs / f"{name}.log").open("w"))
            children[name] = subprocess.Popen(
                command, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, text=True,
            )  # fmt: skip

        print("starting Prefect and MLflow ...", flush=True)
        start("prefect", [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)])
        _initialise(root, store, env, logs / "setup.log")
        start(
            "mlflow",
            [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port),
             "--backend-store-uri", store, "--default-artifact-root", str(root / "mlartifacts"),
             "--workers", "1"],
        )  # fmt: skip
        _wait(children, logs, lambda: is_healthy(address))
        # Deploying again would drop the schedules that were made or switched on in the page.
        found = _get(address, f"/deployments/name/{DEPLOYMENT}", env.get(AUTH), seconds=30.0)
        if not _is_deployed(root, *found):
            for step in (["work-pool", "create", POOL, "--type", "process", "--overwrite"], ["deploy", "--all"]):
                _call([*prefect, "--no-prompt", *step], root, env, logs / "setup.log")
        start("worker", [*prefect, "worker", "start", "--pool", POOL, "--name", "local"])
        _wait(children, logs, lambda: _is_taken(mlflow_port))

        print(f"runs:        http://127.0.0.1:{prefect_port}")
        print(f"comparisons: http://127.0.0.1:{mlflow_port}")
        if prefect_port != 4200:
            print(f"for stages to be shown: export PREFECT_API_URL={address}")
        if env.get(AUTH) != os.environ.get(AUTH):
            print(f"for stages to be shown: export {AUTH}=${SERVER_AUTH}")
        print(f"logs are in {logs.relative_to(root)}/; Ctrl-C stops everything", flush=True)
        while True:
            _check(children, logs)
            time.sleep(0.5)


def _stop_reversed(children: dict[str, subprocess.Popen[str]]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave some of them running
    for process in reversed(children.values()):
        stop([process])


def _is_deployed(root: Path, status: int, text: bytes) -> bool:
    """Tell by the API's answer whether the deployment exists and runs this checkout's prefect.yaml here."""
    from ruamel.yaml import YAML

    if status == 404:
        return False
    if status != 200:
        raise _ChildError(f"the Prefect API does not tell its deployments (status {status}); is {AUTH} right?")
    found: dict[str, Any] = json.loads(text)
    wanted = {each["name"]: each for each in YAML(typ="safe").load(root / "prefect.yaml")["deployments"]}
    pulls = [step for pull in found["pull_steps"] or [] for step in pull.values()]
    return (
        found["entrypoint"] == wanted[found["name"]]["entrypoint"]
        and found["work_pool_name"] == POOL
        and [pull.get("directory") for pull in pulls] == [str(root)]
    )


def _initialise(root: Path, store: str, env: Mapping[str, str], log: Path) -> None:
    """Make MLflow's database if there is none, unless the shipper is at work, which makes it itself."""
    database = root / "mlflow.db"
    existed = database.exists()
    lock = lock_of_shipper(root)
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + SHIPPER_SECONDS
    with lock.open("a") as held:
        while not _locks(held):
            if existed or time.monotonic() > deadline:
                return
            time.sleep(0.2)
        if not database.exists():
            _call([sys.executable, "-m", "mlflow", "db", "upgrade", store], root, env, log)
    if journal_folders(root):  # their stages took this process for the shipper
        start_shipper(root)


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
        raise _ChildError(f"`{' '.join(command[2:5])}` failed, see {log.relative_to(root)}")


def _wait(children: Mapping[str, subprocess.Popen[str]], logs: Path, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_up():
        _check(children, logs)
        if time.monotonic() > deadline:
            raise _ChildError(f"not up after {START_SECONDS:.0f} s, see {logs}")
        time.sleep(0.2)


def _check(children: Mapping[str, subprocess.Popen[str]], logs: Path) -> None:
    for name, process in children.items():
        if process.poll() is not None:
            raise _ChildError(f"{name} ended with {process.returncode}, see {logs / name}.log")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _group(leader: int) -> list[psutil.Process]:
    members = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == leader:
                members.append(psutil.Process(pid))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def _identified(processes: Iterable[psutil.Process]) -> dict[Process, psutil.Process]:
    known = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            known[Process.of(process)] = process
    return known


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # refuses a process id that was given to another process
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    sys.exit(main())
