"""Prefect watches what a stage does and is told it once, whatever dies when: against a real server."""

import contextlib
import json
import os
import re
import subprocess
import time

import pytest

from flows.events import Metrics, ModelReady, Note, Picture, Progress, Table, trained
from flows.watch import journal, postman
from flows.watch.to_prefect import PrefectBox, pages
from prefect_fixtures import _server, by_hand, home, project, server
from repository import ROOT
from servers import (
    PYTHON,
    QUIET,
    child_environment,
    client_of,
    opened,
    runs_named,
    told,
    wait_until,
)

pytestmark = [*QUIET, pytest.mark.usefixtures("home", "by_hand")]


def of_run(client, what, flow_run):
    """All logs or artifacts of a run; the client's own functions return 200."""
    return pages(client, f"/{what}/filter", {what: {"flow_run_id": {"any_": [str(flow_run.id)]}}})


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


def test_rate_time_left_and_the_loss_are_shown(server, tmp_path):
    with opened(tmp_path, "paced") as run:
        run(Progress("train", 0, 100))
        for step in range(5):
            run(trained(64 * step, 1 / (1 + step), 1.0, 1e-3))
        time.sleep(0.2)
        run(Progress("train", 100, 100))
    told(tmp_path)
    with client_of(server.address) as client:
        (flow_run,) = runs_named(client, "paced")
        shown = {found["key"]: found for found in of_run(client, "artifacts", flow_run)}
    assert re.fullmatch(r"train of stage paced: [\d.k]+ images/s, 00:00 left", shown["paced-train"]["description"])
    assert shown["paced-loss"]["data"].startswith("![loss](data:image/svg+xml;base64,")


@pytest.mark.parametrize("page", [None, "http://mlflow.example"])
def test_a_stages_run_leads_to_mlflows_when_that_is_known(server, tmp_path, monkeypatch, page):
    """MLflow may be slower, and be told after Prefect has heard of the end."""
    if page:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", page)
    name = f"linked-{len(page or '')}"
    opened(tmp_path, name).close("FINISHED")
    told(tmp_path)
    (folder,) = journal.journal_folders(tmp_path)
    closed = {"closed": True, "linked": True}
    with client_of(server.address) as client:
        (flow_run,) = runs_named(client, name)
        assert not of_run(client, "artifacts", flow_run)
        journal.write_state(folder, "mlflow", {"run": "0a1b", "experiment": "7", **closed})
        postman.sweep(tmp_path)
        assert folder.exists(), "Prefect does not know yet"
        told(tmp_path)
        (artifact,) = of_run(client, "artifacts", flow_run)
        assert artifact["key"] == f"{name}-mlflow"
        link = f"[the run with this stage's numbers]({page}/#/experiments/7/runs/0a1b)"
        assert artifact["data"] == (link if page else "MLflow's run `0a1b`")
        assert client.read_flow_run(flow_run.id).labels["fmcore.mlflow_run"] == "0a1b"
    postman.sweep(tmp_path)
    assert not folder.exists()


def test_a_stage_without_a_run_in_mlflow_waits_for_no_link(server, tmp_path):
    """As one that only looked around."""
    opened(tmp_path, "looked").close("FINISHED")
    (folder,) = journal.journal_folders(tmp_path)
    journal.write_state(folder, "mlflow", {"done": True, "closed": True, "linked": True})
    told(tmp_path)
    with client_of(server.address) as client:
        (flow_run,) = runs_named(client, "looked")
        assert not of_run(client, "artifacts", flow_run)
    postman.sweep(tmp_path)
    assert not folder.exists()


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
        (folder,) = journal.journal_folders(root)
        journal.write_state(folder, "mlflow", {"run": "0a1b", "experiment": "1"})
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
    busy = []
    try:
        with opened(tmp_path, "busy") as run, client_of(server.address) as client:
            wait_until(lambda: runs_named(client, "busy"), 120)
            wait_until(lambda: list(tmp_path.glob("work/journal/*/mlflow.json")), 120)  # it has all it needs
            busy = [subprocess.Popen([PYTHON, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
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
