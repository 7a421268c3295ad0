"""Prefect watches and never decides: against real servers, real workers and real DVC projects."""

import http.server
import json
import os
import signal
import subprocess
import threading
import time

import psutil
import pytest
from servers import (
    PYTHON,
    ROOT,
    Server,
    child_environment,
    client_of,
    free_port,
    make_project,
    pipeline,
    runs_named,
    wait_until,
)

from flows.events import Metrics, ModelReady, Note, Picture, Progress, Table
from flows.local.api import Api, is_healthy
from flows.watch.runs import open_run

# Prefect and what it imports warn about each other; what is ours is tested in the child processes too.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:prefect"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic"),
]


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
from flows.watch.runs import open_run
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
from flows.local.api import Api
runs.live_api = lambda root: Api("http://127.0.0.1:9/api")
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
    monkeypatch.setattr("flows.watch.runs.live_api", lambda root: found.wait(60) and Api("http://127.0.0.1:9/api"))
    talked = []
    monkeypatch.setattr("flows.watch.runs.Run._talk", lambda run, api: talked.append(run))
    run = open_run(tmp_path, stage="base", parameters={})
    start = time.monotonic()
    run.close(None)
    assert time.monotonic() - start < 5.0
    found.set()
    run._thread.join(5)
    assert run.checked.is_set()
    assert not talked, "it was too late to begin"


def test_refusal_is_an_answer_to_who_has_a_login():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{refusing.server_address[1]}/api"
        assert not is_healthy(address)
        assert is_healthy(address, "me:secret")
        refusing.shutdown()


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
