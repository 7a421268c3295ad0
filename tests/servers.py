"""Real servers, workers and DVC projects for the tests of what surrounds the stages."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.local import private
from flows.local.api import asked, is_healthy
from flows.pages.gate import bound
from flows.pages.servers import DEPLOYMENT, environment
from flows.watch.journal import open_journal
from flows.watch.to_prefect import PrefectBox
from repository import ROOT

PYTHON = sys.executable
NOBODY = 65534
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_PORTS = iter(range(16000 + 400 * (_WORKER % 32), 16400 + 400 * (_WORKER % 32)))  # below what systems hand out

STAGE = """
import os, sys, time
from pathlib import Path
from flows.events import Progress
from flows.watch.journal import open_journal

name, seconds = sys.argv[1], float(sys.argv[2])
with open("pipelines", "a") as file:
    print(os.environ.get("FMCORE_PIPELINE"), file=file)
if Path("broken").exists() and name == "b":
    sys.exit("the stage says why")
root, stage = Path(os.environ["DVC_ROOT"]), os.environ["DVC_STAGE"]
with open_journal(root, stage=stage, params={"name": name}, tags={}) as run:
    Path("pid").write_text(str(os.getpid()))
    for done in range(11):
        run(Progress("train", done, 10))
        time.sleep(seconds / 10)
Path(name + ".txt").write_text(name)
"""

GRAPH = """
stages:
  a:
    cmd: python stage.py a 0.1
    deps: [a.seed]
    outs: [a.txt]
  b:
    cmd: python stage.py b 0.1
    deps: [a.txt, b.seed]
    outs: [b.txt]
  c:
    foreach: {r1: {}}
    do:
      cmd: python stage.py c 0.1
      deps: [b.txt]
      outs: [c.txt]
"""


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not so within {seconds} s")


def free_port():
    """A port that nothing listens on, another at each call, of a range that no other test process draws from.

    The ports that a system hands out may come twice, or be taken by a connection before a server has them.
    """
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is left")


def answer_to(url, body=None, *, login=None, **headers):
    """Status and text of the answer to a GET, or to a POST if there is a body."""
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class Server:
    """A Prefect server as `flows.pages` configures it, which a test may kill and start again."""

    def __init__(self, home):
        self.port = free_port()
        self.login = private.made_login()
        self.env = environment(home, self.port, self.login) | {
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3"
        }
        self.address = self.env["PREFECT_API_URL"]
        self.log = home / "server.log"
        Path(self.env["PREFECT_HOME"]).mkdir(parents=True)

    def start(self):
        with contextlib.ExitStack() as stack:
            handles = [stack.enter_context(each).fileno() for each in bound(self.port)]
            command = [PYTHON, "-m", "flows.pages.gate", *map(str, handles)]
            log = stack.enter_context(self.log.open("a"))
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=log, stderr=log, start_new_session=True, pass_fds=handles
            )
        try:
            wait_until(lambda: is_healthy(self.address) or self.process.poll() is not None, 120)
            assert self.process.poll() is None, self.log.read_text()
        except BaseException:
            self.kill()
            raise

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def client_of(address):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    settings = {PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: private.login()}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def runs_named(client, name):
    return [run for run in client.read_flow_runs() if run.name == name]


# Prefect and what it imports warn about each other; what is ours is tested in the child processes too.
QUIET = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:prefect"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic"),
]


@contextlib.contextmanager
def prefect_home(folder):
    """Prefect's own files lie in a folder of the test's, and no server is named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(folder))
        patch.setenv("DO_NOT_TRACK", "1")
        patch.delenv("PREFECT_API_URL", raising=False)
        yield


@contextlib.contextmanager
def running_server(folder):
    """A Prefect server that is there meanwhile."""
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def running_pages(checkout):
    """The pages of a checkout, without a login: the process, both addresses, seconds until they were healthy."""
    ports = [str(free_port()) for _ in range(2)]
    command = [PYTHON, "-m", "flows.pages", "--no-login", "--prefect-port", ports[0], "--mlflow-port", ports[1]]
    prefect, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
    start = time.monotonic()
    with subprocess.Popen(command, cwd=checkout, start_new_session=True) as process:
        try:
            wait_until(lambda: process.poll() is not None or asked(f"{prefect}/api", "/health")[0] == 200, 300)
            wait_until(lambda: process.poll() is not None or asked(mlflow, "/health")[0] == 200, 300)
            healthy = time.monotonic() - start
            known = f"/deployments/name/{DEPLOYMENT}"
            wait_until(lambda: process.poll() is not None or asked(f"{prefect}/api", known)[0] == 200, 300)
            yield SimpleNamespace(process=process, prefect=prefect, mlflow=mlflow, healthy=healthy)
        finally:
            process.send_signal(signal.SIGINT)


def opened(root, stage="base", **params):
    return open_journal(root, stage=stage, params=params, tags={})


def make_project(folder):
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "stage.py").write_text(STAGE)
    for name in "ab":
        (folder / f"{name}.seed").write_text("1")
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run([PYTHON, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, env=env, check=True)
    return folder


def child_environment(address):
    return os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": address, "DO_NOT_TRACK": "1"}


def pipeline(project, address, *arguments):
    command = [PYTHON, "-m", "flows.pipeline", *arguments]
    return subprocess.run(
        command, cwd=project, env=child_environment(address), capture_output=True, text=True, check=False
    )


def told(root, seconds=30.0):
    """Tells Prefect what the journals of a folder hold, as the postman does; nothing is left then."""
    deadline = time.monotonic() + seconds
    with contextlib.closing(PrefectBox(root)) as box:
        while (outcome := box.tick(leaving=True)).waiting or outcome.problems:
            assert time.monotonic() < deadline, outcome
            time.sleep(0.1)


def spelled(login):
    """The secret as files could hold it: plain, and as requests show it."""
    return login.partition(":")[2].encode(), base64.b64encode(login.encode())


@contextlib.contextmanager
def someone_else(work):
    """Runs `work(say)` as another user; gives a function that returns what it said next, None after some seconds.

    In a fork that changes its user, since the interpreter may lie where others cannot start it.
    """
    mine, theirs = socket.socketpair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; this one runs little
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mine.close()
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work(lambda text: theirs.sendall(f"{text}\n".encode()))
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    try:
        with mine, mine.makefile("rb") as lines:

            def said(seconds=60):
                mine.settimeout(seconds)
                try:
                    return lines.readline().decode().rstrip("\n")
                except TimeoutError:
                    return None

            yield said
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
