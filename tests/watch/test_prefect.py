"""Prefect watches and never decides: against real servers, real workers and real DVC projects."""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time

import psutil
import pytest

from flows.events import Metrics, ModelReady, Note, Picture, Progress, Table
from flows.local.api import is_healthy
from flows.watch import journal, postman, waiting
from flows.watch.journal import open_journal
from flows.watch.letterbox import Outcome
from flows.watch.to_prefect import PrefectBox, _pages
from repository import ROOT
from servers import (
    PYTHON,
    Server,
    child_environment,
    client_of,
    free_port,
    make_project,
    pipeline,
    runs_named,
    told,
    wait_until,
)

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


def opened(root, stage="base", **params):
    return open_journal(root, stage=stage, params=params, tags={})


def test_a_stage_asks_no_server(dead_address, tmp_path):
    code = """
import sys, time
from pathlib import Path
from flows.watch import journal
from flows.events import Progress
journal.start_postman = lambda root: None
start = time.perf_counter()
with journal.open_journal(Path(sys.argv[1]), stage="base", params={}, tags={}) as run:
    for done in range(11):
        run(Progress("train", done, 10))
assert time.perf_counter() - start < 0.05, time.perf_counter() - start
assert not {"prefect", "httpx", "mlflow"} & set(sys.modules)
"""
    done = subprocess.run(
        [PYTHON, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = journal.journal_folders(tmp_path)
    text = (folder / journal.RECORDS).read_text()
    assert "http://127.0.0.1" in text
    assert "secret" not in text
    assert text.count('"progress"') == 2, "the first and the last: nobody looks more often"


def test_a_dead_server_is_told_of_and_the_journal_kept(dead_address, tmp_path):
    with opened(tmp_path):
        pass
    with contextlib.closing(PrefectBox(tmp_path)) as box:
        problems = postman.once(tmp_path, [box])
    assert problems[0].startswith("Prefect: ConnectionError: no Prefect API answers at http://127.0.0.1")
    assert "secret" not in problems[0]
    assert len(journal.journal_folders(tmp_path)) == 1
    (line,) = waiting.told(tmp_path, "a")
    assert line.startswith("Prefect lacks the last records, which are kept: ConnectionError")


class Hanging:
    """A letterbox whose server answers after half a minute."""

    reader = "prefect"
    pause_seconds = 0.01

    def __init__(self):
        self.answer = threading.Event()

    def tick(self, *, leaving):
        self.answer.wait(30)
        return Outcome(live=False, waiting=False, problems=[])


def test_a_server_that_hangs_delays_the_other_by_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(postman, "JOIN_SECONDS", 0.1)
    looked = threading.Event()

    class Well:
        reader = "mlflow"
        pause_seconds = 0.01

        def tick(self, *, leaving):
            looked.set()
            return Outcome(live=False, waiting=False, problems=[])

    with opened(tmp_path):
        pass
    hanging = Hanging()
    monkeypatch.setattr(postman, "LINGER_SECONDS", 0)
    thread = threading.Thread(target=postman.stay, args=(tmp_path, [hanging, Well()]))
    thread.start()
    assert looked.wait(1)
    hanging.answer.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(("status", "again"), [(422, False), (404, False), (403, True), (429, True), (503, True)])
def test_what_a_server_refuses_for_good_is_left_out(status, again):
    import httpx

    from flows.watch.to_prefect import _refused

    request = httpx.Request("POST", "http://127.0.0.1/x")
    error = httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))
    with pytest.raises(httpx.HTTPStatusError) if again else contextlib.nullcontext(), _refused():
        raise error


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


def of_run(client, what, flow_run):
    """All logs or artifacts of a run; the client's own functions return 200."""
    return _pages(client, f"/{what}/filter", {what: {"flow_run_id": {"any_": [str(flow_run.id)]}}})


def lines_of(client, flow_run):
    return [line["message"] for line in of_run(client, "logs", flow_run)]


def play(root, stage="reflow@r1"):
    """A stage that yields every kind of event."""
    picture = root / "grid.png"
    picture.write_bytes(b"\x89PNG" + bytes(100))
    (root / "r1").mkdir(exist_ok=True)
    with opened(root, stage, lr=1e-4, bad=float("nan"), p=picture) as run:
        for done in (0, 30, 60, 100):
            run(Progress("Train it", done, 100))
        run(Metrics(0, {"loss": 2.0}))
        run(Metrics(7, {"loss": 0.5}))
        run(Picture("samples-nfe-004", picture))
        run(Table("scores", [{"nfe": 1, "fid": 3.25}, {"nfe": 2, "fid": float("inf")}]))
        run(Note("a note"))
        run(ModelReady("r1", root / "r1"))


@pytest.fixture(autouse=True)
def by_hand(monkeypatch, request):
    """The postman works when a test tells it to, but for those that start processes."""
    monkeypatch.setattr(journal, "start_postman", lambda root: None)


def test_stage_is_recorded(server, tmp_path):
    play(tmp_path)
    told(tmp_path)
    (folder,) = journal.journal_folders(tmp_path)
    tags = journal.read_state(folder, "prefect")["tags"]
    with client_of(server.address) as client:
        (flow_run,) = runs_named(client, "reflow@r1")
        assert tags["prefect.flow_run_id"] == str(flow_run.id)
        page = server.address.removesuffix("/api")
        assert tags["prefect.flow_run_url"] == f"{page}/runs/flow-run/{flow_run.id}"
        assert client.read_flow(flow_run.flow_id).name == "reflow"
        assert flow_run.state.is_completed()
        assert flow_run.tags == ["dvc:reflow@r1"]
        assert flow_run.parameters == {"lr": 1e-4, "bad": "nan", "p": str(tmp_path / "grid.png")}
        shown = {artifact.key: artifact for artifact in client.read_artifacts()}
        assert shown["reflow-r1-train-it"].data == 100
        assert shown["reflow-r1-samples-nfe-004"].data.startswith("![samples-nfe-004](data:image/png;base64,")
        assert json.loads(shown["reflow-r1-scores"].data)[1] == {"nfe": 2, "fid": "inf"}
        assert {artifact.flow_run_id for artifact in shown.values()} == {flow_run.id}
        text = lines_of(client, flow_run)
        model = f"model r1 is ready in {tmp_path / 'r1'}"
        assert {"a note", model, "step 0: loss 2", "step 7: loss 0.5"} <= set(text)
    postman.sweep(tmp_path)
    assert journal.journal_folders(tmp_path), "MLflow has not had it yet"


class Killed(BaseException):
    """Ends a postman as abruptly as a signal does."""


def mortal(client, lives):
    """Makes a client die after its `lives`-th call, or not if there is no such; returns what counts the calls."""
    calls = []

    def counted(call):
        def one(*arguments, **options):
            answer = call(*arguments, **options)
            calls.append(call)
            if len(calls) == lives:
                raise Killed
            return answer

        return one

    for name in ("request", "create_logs", "create_flow_from_name", "set_flow_run_state"):
        setattr(client, name, counted(getattr(client, name)))
    return calls


@pytest.mark.slow
def test_a_postman_killed_after_any_call_doubles_nothing(server, tmp_path):
    """One that dies after its k-th call, for all k, and a second one that does the rest."""

    def delivered(lives):
        root = tmp_path / str(lives)
        root.mkdir()
        play(root, stage=f"killed-{lives}")
        with contextlib.closing(PrefectBox(root)) as box:
            calls = mortal(box._client(server.address, own=True), lives)
            with contextlib.suppress(Killed):
                assert not box.tick(leaving=True).problems
        told(root)
        with client_of(server.address) as client:
            (flow_run,) = runs_named(client, f"killed-{lives}")
            assert flow_run.state.is_completed()
            lines = sorted(line.partition(" is ready")[0] for line in lines_of(client, flow_run))
            keys = sorted(found["key"].split("-", 2)[2] for found in of_run(client, "artifacts", flow_run))
        return len(calls), lines, keys

    calls, *expected = delivered(0)
    assert calls > 8
    for lives in range(1, calls + 1):
        assert list(delivered(lives)[1:]) == expected, lives


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
    with pytest.raises(type(error)), opened(tmp_path, "ends"):
        raise error
    told(tmp_path)
    (folder,) = journal.journal_folders(tmp_path)
    run = journal.read_state(folder, "prefect")["run"]
    with client_of(server.address) as client:
        (flow_run,) = [found for found in runs_named(client, "ends") if str(found.id) == run]
        assert (flow_run.state.type.value, flow_run.state.message) == (state, message)


def test_a_killed_stage_is_told_from_a_silent_one(server, project):
    env = child_environment(server.address) | {"DVC_ROOT": str(project), "DVC_STAGE": "killed"}
    stage = subprocess.Popen([PYTHON, "stage.py", "killed", "60"], cwd=project, env=env)
    with client_of(server.address) as client:
        wait_until(lambda: runs_named(client, "killed"))
        assert runs_named(client, "killed")[0].state.is_running()
        stage.kill()
        stage.wait()
        wait_until(lambda: runs_named(client, "killed")[0].state.is_crashed(), 30)
        assert runs_named(client, "killed")[0].state.message == "its process was killed"


@pytest.mark.slow
def test_server_that_dies_loses_nothing(server, tmp_path):
    with opened(tmp_path, "bereft") as run, contextlib.closing(PrefectBox(tmp_path)) as box:
        run(Note("before"))
        assert not box.tick(leaving=False).problems
        server.kill()
        try:
            for number in range(300):
                run(Note(str(number)))
            assert box.tick(leaving=False).problems
        finally:
            server.start()
    told(tmp_path)
    with client_of(server.address) as client:
        (found,) = runs_named(client, "bereft")
        assert found.state.is_completed()
        said = lines_of(client, found)
        assert sorted(said) == sorted(["before", *map(str, range(300))])


@pytest.mark.slow
def test_progress_is_seen_within_seconds_while_all_cores_work(server, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PREFECT_API_URL", server.address)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    busy = [subprocess.Popen([PYTHON, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        with opened(tmp_path, "busy") as run, client_of(server.address) as client:
            wait_until(lambda: runs_named(client, "busy"), 120)
            for done in (20, 60):
                time.sleep(2.1)  # of progress that comes thicker some is left out
                run(Progress("train", done, 100))
                since = time.monotonic()
                wait_until(lambda done=done: [a for a in client.read_artifacts() if a.data == done], 20)
                assert time.monotonic() - since < 5
    finally:
        for process in busy:
            process.kill()
            process.wait()


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
        wait_until(lambda: [run for run in runs_named(client, "c@r1") if run.state.is_final()], 60)
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
