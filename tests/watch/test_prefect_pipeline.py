"""Pipelines and schedules in Prefect, which never decides: against real servers and real DVC projects."""

import signal
import subprocess

import psutil
import pytest

from prefect_fixtures import _server, by_hand, dead_address, home, project, server
from servers import (
    PYTHON,
    QUIET,
    child_environment,
    client_of,
    pipeline,
    runs_named,
    wait_until,
)

pytestmark = [*QUIET, pytest.mark.usefixtures("home", "by_hand")]


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
        found = [run for run in client.read_flow_runs() if client.read_flow(run.flow_id).name == "reflow-pipeline"]
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
        assert run.state.message == "stage 'b' failed: the stage says why"
        assert failed.stderr.splitlines()[-1] == run.state.message
        found = ended(client, 3)
        states = {name: task.state.name for name, task in found.items()}
        assert states == {"a": "Cached", "b": "Failed", "c@r1": "Skipped"}
        assert found["b"].state.message == run.state.message
        assert found["c@r1"].state.message == "not started: stage 'b' failed"
        said = [line for line in client.read_logs() if line.flow_run_id == run.id]
        assert not [line.message for line in said if "Traceback" in line.message]


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
