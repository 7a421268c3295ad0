"""A project with a server, its deployments and a worker, and runs submitted to it as Prefect's page does."""

import contextlib
import os
import signal
import subprocess
from types import SimpleNamespace

import pytest

from repository import ROOT
from servers import PYTHON, Server, client_of, prefect_home, wait_until
from small_pipelines import make

NAME = "reflow-pipeline/reflow-pipeline"
SECONDS = 400.0  # on a machine that does other work, too


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A project with a server, its deployments and a worker, as `make ui` has them, but for MLflow."""
    project = make(tmp_path_factory.mktemp("form"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(prefect_home(tmp_path_factory.mktemp("client")))
        server = Server(project)
        server.start()
        stack.callback(server.kill)
        env = server.env | {"PYTHONPATH": str(ROOT)}
        prefect = [PYTHON, "-m", "prefect", "--no-prompt"]
        for step in (["work-pool", "create", "fmcore", "--type", "process"], ["deploy", "--all"]):
            subprocess.run([*prefect, *step], cwd=project, env=env, check=True, capture_output=True)
        log = stack.enter_context((project / "work/worker.log").open("w"))
        command = [*prefect, "worker", "start", "--pool", "fmcore"]
        worker = subprocess.Popen(command, cwd=project, env=env, stdout=log, stderr=log, start_new_session=True)
        stack.callback(worker.wait)
        stack.callback(os.killpg, worker.pid, signal.SIGTERM)
        client = stack.enter_context(client_of(server.address))
        yield SimpleNamespace(project=project, client=client, server=server)


def submit(page, name=NAME, **parameters):
    """Submits the form of a deployment; the run."""
    deployment = page.client.read_deployment_by_name(name)
    return page.client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id


def ended(page, run):
    def state():
        found = page.client.read_flow_run(run).state
        return found if found.is_final() else None

    return wait_until(state, SECONDS)
