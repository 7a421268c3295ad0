"""Prefect watches and never decides: against real servers, real workers and real DVC projects."""

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows import tracking, ui
from flows.events import Metrics, ModelReady, Note, Picture, Progress, Table
from flows.runs import open_run
from flows.ui import environment, is_healthy

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable

# Prefect and what it imports warn about each other; what is ours is tested in the child processes too.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:prefect"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic"),
]

STAGE = """
import os, sys, time
from pathlib import Path
from flows.events import Progress
from flows.runs import open_run

name, seconds = sys.argv[1], float(sys.argv[2])
with open("pipelines", "a") as file:
    print(os.environ.get("FMCORE_PIPELINE"), file=file)
if Path("broken").exists() and name == "b":
    sys.exit("the stage says why")
with open_run(Path(os.environ["DVC_ROOT"]), stage=os.environ["DVC_STAGE"], parameters={"name": name}) as run:
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status_of_post(url, body):
    headers = {"Origin": "http://example.com", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


class Server:
    """A Prefect server as `flows.ui` configures it, which a test may kill and start again."""

    def __init__(self, home):
        self.port = free_port()
        self.env = environment(home, self.port) | {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3"}
        self.address = self.env["PREFECT_API_URL"]
        self.log = home / "server.log"
        Path(self.env["PREFECT_HOME"]).mkdir(parents=True)

    def start(self):
        command = [PYTHON, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: is_healthy(self.address) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def client_of(address):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: address}), get_client(sync_client=True) as client:
        yield client


def runs_named(client, name):
    return [run for run in client.read_flow_runs() if run.name == name]


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


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
        patch.setenv("DO_NOT_TRACK", "1")
        patch.delenv("PREFECT_API_URL", raising=False)
        yield


@pytest.fixture(scope="module")
def _server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", _server.address)
    return _server


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def dead_address(monkeypatch):
    address = f"http://user:secret@127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", address)
    return address


def test_no_server_costs_nothing(dead_address, tmp_path):
    code = """
import sys, time
from pathlib import Path
from flows.runs import open_run
from flows.events import Progress
start = time.perf_counter()
with open_run(Path(sys.argv[1]), stage="base", parameters={}) as run:
    run(Progress("train", 0, 10))
    assert run.tags == {}
assert time.perf_counter() - start < 0.05, time.perf_counter() - start
assert "prefect" not in sys.modules
"""
    done = subprocess.run(
        [PYTHON, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no Prefect API answers at http://127.0.0.1" in done.stderr
    assert "secret" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("healthy", [False, True])
def test_hanging_server_is_not_waited_for(healthy, tmp_path, monkeypatch):
    class Hanging(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if not healthy or not self.path.endswith("/health"):
                time.sleep(60)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    import prefect.client.orchestration  # noqa: F401  its import is waited for, whatever the server does

    hanging = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hanging)
    threading.Thread(target=hanging.serve_forever, daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{hanging.server_address[1]}/api")
    start = time.monotonic()
    run = open_run(tmp_path, stage="base", parameters={})
    assert run.tags == {}
    assert time.monotonic() - start < 2.0
    start = time.monotonic()
    for step in range(3000):
        run(Note(str(step)))
    assert time.monotonic() - start < 0.5
    start = time.monotonic()
    run.close(None)
    assert time.monotonic() - start < 5.0
    hanging.shutdown()
    hanging.server_close()


def test_the_end_waits_for_the_import(tmp_path):
    """An interpreter that leaves while a thread is inside pydantic's compiled code aborts, exit code and all."""
    package = tmp_path / "prefect" / "client"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "orchestration.py").write_text(
        "import typing, pydantic\n"
        "def slow(value): return sum(range(5_000_000)) * 0 + value\n"
        "adapter = pydantic.TypeAdapter(list[typing.Annotated[int, pydantic.AfterValidator(slow)]])\n"
        "print('importing', flush=True)\n"
        "adapter.validate_python([1] * 5)\n"
        "raise ImportError('imported')\n"
    )
    code = """
import sys
from pathlib import Path
from flows import runs
runs.live_api = lambda: "http://127.0.0.1:9/api"
runs.CLOSE_SECONDS = runs.LAST_SECONDS = 0
with runs.open_run(Path(sys.argv[1]), stage="base", parameters={}):
    assert sys.stdin.readline()
"""
    stage = subprocess.Popen(
        [PYTHON, "-c", code, str(tmp_path)], cwd=ROOT, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert stage.stdout.readline() == "importing\n"
    _, said = stage.communicate("go on\n", timeout=60)
    assert stage.returncode == 0, said
    assert said == "Prefect does not record base: ImportError: imported\n"


def test_the_end_does_not_wait_for_a_server_that_is_still_looked_for(tmp_path, monkeypatch):
    """As where a name is not resolved: nothing bounds that."""
    found = threading.Event()
    monkeypatch.setattr("flows.runs.live_api", lambda: found.wait(60) and "http://127.0.0.1:9/api")
    talked = []
    monkeypatch.setattr("flows.runs.Run._talk", lambda run: talked.append(run))
    run = open_run(tmp_path, stage="base", parameters={})
    start = time.monotonic()
    run.close(None)
    assert time.monotonic() - start < 5.0
    found.set()
    run._thread.join(5)
    assert run.checked.is_set()
    assert not talked, "it was too late to begin"


def test_refusal_is_an_answer_to_who_has_a_password(monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{refusing.server_address[1]}/api"
        monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
        assert not is_healthy(address)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
        assert is_healthy(address)
        refusing.shutdown()


def test_initialising_starts_the_shipper_it_kept_away(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(ui, "start_shipper", started.append)
    monkeypatch.setattr(ui, "_call", lambda command, *rest: open_journal())

    def open_journal():
        assert tracking.is_locked(tracking.lock_of_shipper(tmp_path))
        with tracking.open_run(tmp_path, stage="early", params={}, tags={}):
            pass

    ui._initialise(tmp_path, "", {}, tmp_path / "setup.log")
    assert started == [tmp_path]
    assert not tracking.is_locked(tracking.lock_of_shipper(tmp_path))


def test_stage_is_recorded(server, tmp_path):
    picture = tmp_path / "grid.png"
    picture.write_bytes(b"\x89PNG" + bytes(100))
    with open_run(tmp_path, stage="reflow@r1", parameters={"lr": 1e-4, "bad": float("nan"), "p": picture}) as run:
        for done in (0, 30, 60, 100):
            run(Progress("Train it", done, 100))
        run(Metrics(0, {"loss": 2.0}))
        run(Metrics(7, {"loss": 0.5}))
        run(Picture("samples-nfe-004", picture))
        run(Picture("lost", tmp_path / "none.png"))
        run(Table("scores", [{"nfe": 1, "fid": 3.25}, {"nfe": 2, "fid": float("inf")}]))
        run(Note("a note"))
        run(ModelReady("r1", tmp_path))
        wait_until(lambda: run.tags, 20)
    assert not list((tmp_path / "work" / "prefect").glob("*"))
    with client_of(server.address) as client:
        (flow_run,) = runs_named(client, "reflow@r1")
        assert run.tags["prefect.flow_run_id"] == str(flow_run.id)
        assert run.tags["prefect.flow_run_url"].endswith(f"/runs/flow-run/{flow_run.id}")
        assert client.read_flow(flow_run.flow_id).name == "reflow"
        assert flow_run.state.is_completed()
        assert flow_run.tags == ["dvc:reflow@r1"]
        assert flow_run.parameters == {"lr": 1e-4, "bad": "nan", "p": str(picture)}
        shown = {artifact.key: artifact for artifact in client.read_artifacts()}
        assert shown["reflow-r1-train-it"].data == 100
        assert shown["reflow-r1-samples-nfe-004"].data.startswith("![samples-nfe-004](data:image/png;base64,")
        assert "cannot be read" in shown["reflow-r1-lost"].data
        assert json.loads(shown["reflow-r1-scores"].data)[1] == {"nfe": 2, "fid": "inf"}
        assert {artifact.flow_run_id for artifact in shown.values()} == {flow_run.id}
        text = [line.message for line in client.read_logs() if line.flow_run_id == flow_run.id]
        assert {"a note", f"model r1 is ready in {tmp_path}", "step 0: loss 2", "step 7: loss 0.5"} <= set(text)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (ValueError("bad value\nmore"), "FAILED", "ValueError: bad value"),
        (SystemExit(2), "FAILED", "exit 2"),
        (SystemExit(143), "CANCELLED", "interrupted; the same command resumes it"),
        (KeyboardInterrupt(), "CANCELLED", "interrupted; the same command resumes it"),
    ],
)
def test_ends_are_told_apart(error, state, message, server, tmp_path):
    run = open_run(tmp_path, stage="ends", parameters={})
    wait_until(lambda: run.tags, 20)
    run.close(error)
    with client_of(server.address) as client:
        (flow_run,) = [found for found in runs_named(client, "ends") if str(found.id) in run.tags.values()]
        assert (flow_run.state.type.value, flow_run.state.message) == (state, message)


def test_killed_stage_is_marked_crashed_by_the_next(server, project):
    env = child_environment(server.address) | {"DVC_ROOT": str(project), "DVC_STAGE": "killed"}
    stage = subprocess.Popen([PYTHON, "stage.py", "killed", "60"], cwd=project, env=env)
    record = project / "work" / "prefect" / "killed.json"
    wait_until(record.exists)
    stage.kill()
    stage.wait()
    with open_run(project, stage="other", parameters={}) as run:
        wait_until(lambda: run.tags, 20)
        assert not record.exists()
    with client_of(server.address) as client:
        (flow_run,) = runs_named(client, "killed")
        assert flow_run.state.is_crashed()


@pytest.mark.slow
def test_server_that_dies_changes_nothing(server, tmp_path):
    """Running the stage inside Prefect's engine ended it with exit 1 after 200 seconds."""
    run = open_run(tmp_path, stage="bereft", parameters={})
    wait_until(lambda: run.tags, 20)
    server.kill()
    try:
        for done in range(2000):
            run(Progress("train", done, 2000))
            run(Note(str(done)))
        start = time.monotonic()
        run.close(None)
        assert time.monotonic() - start < 5.0
    finally:
        server.start()
    with open_run(tmp_path, stage="later", parameters={}) as later:
        wait_until(lambda: later.tags, 20)
    with client_of(server.address) as client:
        for name in ("bereft", "later"):
            (found,) = runs_named(client, name)
            assert found.state.is_completed()  # told late, but told as it was


def test_cross_origin_post_is_refused(server):
    assert status_of_post(f"{server.address}/flows/", {"name": "foreign"}) == 403


def test_schedules_make_runs(server):
    """Prefect's scheduler silently makes none with SQLAlchemy 2.1, which `pip check` allows."""
    body = {
        "name": "scheduled",
        "schedules": [{"active": True, "schedule": {"interval": 3600}}],
    }
    with client_of(server.address) as client:
        body["flow_id"] = str(client.create_flow_from_name("scheduled"))
        made = client.request("POST", "/deployments/", json=body).json()["id"]
        found = wait_until(lambda: [run for run in client.read_flow_runs() if str(run.deployment_id) == made], 30)
    assert all(run.state.is_scheduled() for run in found)


@pytest.mark.slow
def test_pipeline_follows_dvc(server, project):
    def children(client, flow_run_id):
        return {task.name: task for task in client.read_task_runs() if task.flow_run_id == flow_run_id}

    def pipelines(client):
        flows = {found.id: client.read_flow(found.flow_id).name for found in client.read_flow_runs()}
        found = [run for run in client.read_flow_runs() if flows[run.id] == "reflow-pipeline"]
        return sorted(found, key=lambda run: run.created)

    def ended(client, count):
        # Task states reach the server as events, a moment after the process has ended.
        def names():
            run = pipelines(client)[-1]
            tasks = children(client, run.id)
            return (
                tasks if len(tasks) == count and all(t.state.name != "Running" for t in tasks.values()) else None
            )

        return wait_until(names, 15)

    done = pipeline(project, server.address)
    assert done.returncode == 0, done.stderr
    with client_of(server.address) as client:
        tasks = ended(client, 3)
        assert {name: task.state.name for name, task in tasks.items()} == dict.fromkeys(
            ["a", "b", "c@r1"], "Completed"
        )
        (nested,) = runs_named(client, "c@r1")
        assert nested.parent_task_run_id == tasks["c@r1"].id
        assert nested.state.is_completed()

        assert pipeline(project, server.address).returncode == 0
        assert {task.state.name for task in ended(client, 3).values()} == {"Cached"}

        (project / "broken").touch()
        (project / "b.seed").write_text("2")
        failed = pipeline(project, server.address)
        assert failed.returncode == 1
        run = pipelines(client)[-1]
        assert run.state.is_failed()
        assert "stage 'b' failed" in run.state.message
        assert "the stage says why" in run.state.message
        states = {name: task.state.name for name, task in ended(client, 3).items()}
        assert states == {"a": "Cached", "b": "Failed", "c@r1": "NotReady"}


@pytest.mark.slow
def test_pipeline_needs_no_server(dead_address, project):
    done = pipeline(project, dead_address, "b")
    assert done.returncode == 0, done.stderr
    assert "running without one" in done.stderr
    assert "secret" not in done.stderr
    assert "b: done" in done.stdout
    assert not (project / "c.txt").exists()
    first, second = (project / "pipelines").read_text().split()
    assert first == second  # one run, also for MLflow
    assert "b: cached" in pipeline(project, dead_address, "b").stdout
    unknown = pipeline(project, dead_address, "d")
    assert unknown.returncode == 1
    assert unknown.stderr.splitlines()[-1] == "dvc.yaml has no stage 'd', it has a, b, c@r1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_pipeline_leaves_no_process(number, dead_address, project):
    graph = project / "dvc.yaml"
    graph.write_text(graph.read_text().replace("a 0.1", "a 100"))
    running = subprocess.Popen(
        [PYTHON, "-m", "flows.pipeline"], cwd=project, env=child_environment(dead_address),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stage = psutil.Process(int(wait_until(lambda: (project / "pid").exists() and (project / "pid").read_text())))
    running.send_signal(number)
    assert running.wait(15) == 128 + number
    wait_until(lambda: not stage.is_running(), 2)


@pytest.mark.slow
def test_ui_deploys_runs_and_cancels(tmp_path_factory, tmp_path, monkeypatch):
    project = make_project(tmp_path_factory.mktemp("ui"))
    for folder in (project, tmp_path):
        shutil.copy(ROOT / "prefect.yaml", folder)
    shutil.copytree(ROOT / "flows", project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    ports = [free_port(), free_port()]
    address = f"http://127.0.0.1:{ports[0]}/api"
    command = [PYTHON, "-m", "flows.ui", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    output = project / "ui.out"
    page = start_ui(command, project, output)
    try:
        second = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stderr == f"port {ports[0]} is in use; choose another with --prefect-port\n"
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                assert answer.status == 200
        assert status_of_post(f"{address}/flows/", {"name": "foreign"}) == 403
        experiments = f"http://127.0.0.1:{ports[1]}/api/2.0/mlflow/experiments/create"
        assert status_of_post(experiments, {"name": "foreign"}) == 403

        with client_of(address) as client:
            deployment = client.read_deployment_by_name(ui.DEPLOYMENT)
            (nightly,) = deployment.schedules
            assert not nightly.active
            client.update_deployment_schedule(deployment.id, nightly.id, active=True)
            run = client.create_flow_run_from_deployment(deployment.id, parameters={"stages": ["a"]}).id
            wait_until(lambda: client.read_flow_run(run).state.is_final(), 60)
            state = client.read_flow_run(run).state
            assert state.is_completed(), state.message  # whole: the state's own text is cut in the middle
            assert (project / "a.txt").exists()
            assert not (project / "b.txt").exists()

            # The next run reads the edited graph; cancelling it must reach the stage itself.
            (project / "pid").unlink()
            graph = project / "dvc.yaml"
            graph.write_text(graph.read_text().replace("a 0.1", "a 100"))
            run = client.create_flow_run_from_deployment(deployment.id).id
            stage = psutil.Process(
                int(wait_until(lambda: (project / "pid").exists() and (project / "pid").read_text()))
            )
            body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
            client.request("POST", "/flow_runs/{id}/set_state", path_params={"id": run}, json=body)
            wait_until(lambda: not stage.is_running(), 15)
            wait_until(lambda: client.read_flow_run(run).state.is_cancelled(), 30)
        children = psutil.Process(page.pid).children(recursive=True)
        page.send_signal(signal.SIGTERM)
        assert page.wait(40) == 0
        assert [child for child in children if child.is_running()] == []

        # The next start keeps what was done in the page; now with a password.
        graph.write_text(GRAPH)
        monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:secret")
        page = start_ui(command, project, output)
        assert "export PREFECT_API_AUTH_STRING=$PREFECT_SERVER_API_AUTH_STRING" in output.read_text()
        assert ui._get(address, f"/deployments/name/{ui.DEPLOYMENT}")[0] == 401
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
        with client_of(address) as client:
            found = client.read_deployment_by_name(ui.DEPLOYMENT)
            assert found.id == deployment.id
            assert [schedule.active for schedule in found.schedules] == [True]
            run = client.create_flow_run_from_deployment(found.id, parameters={"stages": ["a"]}).id
            wait_until(lambda: client.read_flow_run(run).state.is_final(), 60)
            assert client.read_flow_run(run).state.is_completed()
        answer = ui._get(address, f"/deployments/name/{ui.DEPLOYMENT}", "me:secret")
        assert ui._is_deployed(project, *answer)
        assert not ui._is_deployed(tmp_path, *answer)
        assert not ui._is_deployed(project, 404, b"")
    finally:
        page.terminate()
        page.wait(60)


def start_ui(command, project, output):
    with output.open("w") as file:
        page = subprocess.Popen(command, cwd=project, stdout=file, stderr=file)
    wait_until(lambda: "Ctrl-C" in output.read_text() or page.poll() is not None, 120)
    assert page.poll() is None, output.read_text()
    return page
