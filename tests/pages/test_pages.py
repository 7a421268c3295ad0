"""The pages of `make ui`, as their owner uses them and as others try to."""

import json
import os
import shutil
import signal
import subprocess
from types import SimpleNamespace

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.local import api, private
from flows.pages import servers as ui
from flows.watch import database, journal
from repository import ROOT
from servers import (
    GRAPH,
    PYTHON,
    answer_to,
    client_of,
    free_port,
    make_project,
    runs_named,
    someone_else,
    spelled,
    wait_until,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:prefect"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic"),
]


def start_ui(project, ports, *options):
    command = [
        PYTHON,
        "-m",
        "flows.pages",
        "--prefect-port",
        str(ports[0]),
        "--mlflow-port",
        str(ports[1]),
        *options,
    ]
    output = project / "ui.out"
    with output.open("w") as file:
        page = subprocess.Popen(command, cwd=project, stdout=file, stderr=file)
    wait_until(lambda: "Ctrl-C" in output.read_text() or page.poll() is not None, 120)
    assert page.poll() is None, output.read_text()
    return page


def project_in(folder):
    project = make_project(folder)
    shutil.copy(ROOT / "prefect.yaml", project)
    shutil.copytree(ROOT / "flows", project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    return project


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """`make ui` in a small project of its own."""
    project, ports = project_in(tmp_path_factory.mktemp("ui")), [free_port(), free_port()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("client")))
        patch.setenv("DO_NOT_TRACK", "1")
        for name in (api.URL, api.AUTH, ui.SERVER_AUTH):
            patch.delenv(name, raising=False)
        found = SimpleNamespace(project=project, ports=ports, process=start_ui(project, ports))
        found.runs, found.comparisons = (f"http://127.0.0.1:{port}" for port in ports)
        found.api = f"{found.runs}/api"
        yield found
        found.process.terminate()  # which a test may have ended and started again
        found.process.wait(60)


def test_the_owner_logs_in_and_sees_both(pages):
    login, said = private.login(), (pages.project / "ui.out").read_text()
    assert str(private.login_file()) in said
    assert login.partition(":")[2] not in said, "the file may be open to others"
    for page in (pages.runs, pages.comparisons):
        assert page in said
        assert answer_to(page, login=login)[0] == 200
    assert json.loads(answer_to(f"{pages.runs}/ui-settings")[1])["auth"] == "BASIC", "the page asks for it"
    made = answer_to(f"{pages.comparisons}/api/2.0/mlflow/experiments/create", {"name": "mine"}, login=login)
    assert made[0] == 200
    record = pages.project / "work" / "ui.json"
    assert private.is_private(record)
    assert psutil.Process(json.loads(record.read_text())["pid"]).parent().pid == pages.process.pid


# What runs a command of the attacker's as the owner: https://docs.prefect.io/v3/deploy/infrastructure-concepts
SHELL = {
    "name": "theirs",
    "work_pool_name": ui.POOL,
    "pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "id"}}],
    "flow_id": "00000000-0000-0000-0000-000000000000",
}
PREFECT = {
    "csrf-token?client=x": None,
    "admin/version": None,
    "flows/": {"name": "theirs"},
    "flow_runs/filter": {},
    "deployments/": SHELL,
    "deployments/filter": {},
    "work_pools/filter": {},
    "variables/": {"name": "theirs", "value": 1},
}
MLFLOW = {
    "": None,
    "static-files/index.html": None,
    "api/2.0/mlflow/experiments/search?max_results=9": None,
    "api/2.0/mlflow/experiments/create": {"name": "theirs"},
    "ajax-api/2.0/mlflow/experiments/create": {"name": "theirs"},
    "api/2.0/mlflow/registered-models/create": {"name": "theirs"},
    "api/2.0/mlflow-artifacts/artifacts/theirs": {"a": 1},
    "graphql": {"query": "{ mlflowGetExperiment { apiError { code } } }"},
    "v1/traces": {"a": 1},
}


REFUSED = [401, 403]  # 403 to a POST without the token that is not given out


def everything(pages, **headers):
    """The different answers to all requests."""
    requests = {f"{pages.api}/{path}": body for path, body in PREFECT.items()}
    requests |= {f"{pages.comparisons}/{path}": body for path, body in MLFLOW.items()}
    return sorted({answer_to(url, body, **headers)[0] for url, body in requests.items()})


def test_without_the_login_nothing_is_told_or_taken(pages):
    assert everything(pages) == everything(pages, login="fmcore:not-the-password") == REFUSED
    assert answer_to(f"{pages.api}/csrf-token?client=x")[0] == 401
    assert answer_to(f"{pages.api}/health") == (200, b"true"), "stages look whether it is there"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another user")
def test_another_user_gets_nowhere(pages):
    def attack(say):
        say(json.dumps(everything(pages)))
        try:
            private.login_file().read_text()
        except OSError as error:
            say(type(error).__name__)

    with someone_else(attack) as said:
        assert json.loads(said()) == REFUSED
        assert said() == "PermissionError"


@pytest.mark.parametrize("login", [False, True])
def test_a_foreign_page_gets_nowhere(pages, login):
    """By a name of its own, as after DNS rebinding, or from its own origin; logged in or not."""
    known = private.login() if login else None
    assert everything(pages, login=known, Host="evil.com") == [400]
    assert answer_to(pages.runs, Host="evil.com")[0] == 400
    assert everything(pages, login=known, Origin="http://evil.com") == [403]
    next_door = f"http://127.0.0.1:{free_port()}"
    assert everything(pages, login=known, Origin=next_door) == [403]


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"])
def test_no_channel_opens_without_the_login(pages, path):
    url = f"{pages.api}/{path}".replace("http", "ws", 1)

    def opened(**options):
        with connect(url, **options) as channel:
            channel.send(json.dumps({"type": "auth", "token": "fmcore:not-the-password"}))
            return channel.recv(5)

    for options in ({}, {"subprotocols": ["prefect"]}, {"additional_headers": {"Host": "evil.com"}}):
        with pytest.raises((InvalidStatus, ConnectionClosed)):
            opened(**options)


def test_a_stage_finds_the_page_by_itself(pages):
    """Also with plain `dvc repro`, on whatever port, and without a word of the login."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(["dvc", "repro", "-q", "a"], cwd=pages.project, env=env, check=True, timeout=100)
    with client_of(pages.api) as client:
        wait_until(lambda: [run for run in runs_named(client, "a") if run.state.is_completed()], 60)


def start_again(folder, prefect, mlflow):
    command = [PYTHON, "-m", "flows.pages", "--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_a_second_start_says_what_stands_in_its_way(pages, tmp_path):
    done = start_again(pages.project, free_port(), free_port())
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"the pages of this checkout are up already, in process {pages.process.pid} (to end them: kill "
        f"{pages.process.pid})",
        f"runs:        {pages.runs} (start one: {pages.runs}/deployments)",
        f"comparisons: {pages.comparisons} (opens on the charts of the latest pipeline)",
        f"report:      {pages.comparisons}/report/",
    ]
    for ports in ((pages.ports[0], free_port()), (free_port(), pages.ports[1])):
        done = start_again(tmp_path, *ports)
        assert done.returncode == 1
        taken, option = (ports[0], "prefect") if ports[0] in pages.ports else (ports[1], "mlflow")
        assert done.stderr == f"port {taken} is in use; choose another with --{option}-port\n"


def test_the_report_is_behind_the_same_login(pages):
    (pages.project / "reports").mkdir()
    (pages.project / "reports" / "index.html").write_text("<p>the report")
    assert answer_to(f"{pages.comparisons}/report/", login=private.login()) == (200, b"<p>the report")
    assert answer_to(f"{pages.comparisons}/report/")[0] == 401
    shutil.rmtree(pages.project / "reports")
    assert answer_to(f"{pages.comparisons}/report/", login=private.login())[0] == 404


def test_beside_a_teams_prefect_only_mlflow_is_started(tmp_path, monkeypatch):
    project, ports = project_in(tmp_path), [free_port(), free_port()]
    monkeypatch.setenv(api.URL, "https://prefect.example/api")
    page = start_ui(project, ports)
    try:
        said = (project / "ui.out").read_text().splitlines()
        assert f"comparisons: http://127.0.0.1:{ports[1]} (opens on the charts of the latest pipeline)" in said
        assert any(line.startswith("runs:        https://prefect.example (PREFECT_API_URL; ") for line in said)
        assert answer_to(f"http://127.0.0.1:{ports[1]}", login=private.login())[0] == 200
        with pytest.raises(OSError, match="refused"):
            answer_to(f"http://127.0.0.1:{ports[0]}")
        monkeypatch.delenv(api.URL)
        assert api.live_api(project) is None, "no Prefect server is this checkout's"
        assert api.mlflow_of(project) == f"http://127.0.0.1:{ports[1]}"
    finally:
        page.terminate()
        page.wait(60)


def test_the_page_deploys_runs_and_cancels(pages, tmp_path):
    project = pages.project
    (project / "a.seed").write_text("2")
    (project / "pid").unlink(missing_ok=True)
    with client_of(pages.api) as client:
        deployment = client.read_deployment_by_name(ui.DEPLOYMENT)
        (nightly,) = deployment.schedules
        assert not nightly.active
        client.update_deployment_schedule(deployment.id, nightly.id, active=True)
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"stages": ["a"]}).id
        wait_until(lambda: client.read_flow_run(run).state.is_final(), 60)
        state = client.read_flow_run(run).state
        assert state.is_completed(), state.message  # whole: the state's own text is cut in the middle
        assert (project / "pid").exists()
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
    graph.write_text(GRAPH)
    texts = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}  # databases, logs, journals, records
    assert not [p for p, found in texts.items() if any(text in found for text in spelled(private.login()))]

    children = psutil.Process(pages.process.pid).children(recursive=True)
    pages.process.send_signal(signal.SIGTERM)
    assert pages.process.wait(40) == 0
    assert [child for child in children if child.is_running()] == []
    assert not (project / "work" / "ui.json").exists()

    # The next start keeps what was done in the page; this one asks for no login.
    pages.process = start_ui(project, pages.ports, "--no-login")
    assert "no login: whoever is on this machine can run commands as you" in (project / "ui.out").read_text()
    assert answer_to(f"{pages.api}/flows/filter", {}, Host="evil.com")[0] == 400, "the filter stays"
    assert answer_to(pages.comparisons, Host="evil.com")[0] == 400
    assert answer_to(pages.comparisons)[0] == 200
    with client_of(pages.api) as client:
        found = client.read_deployment_by_name(ui.DEPLOYMENT)
        assert found.id == deployment.id
        assert [schedule.active for schedule in found.schedules] == [True]
        run = client.create_flow_run_from_deployment(found.id, parameters={"stages": ["a"]}).id
        wait_until(lambda: client.read_flow_run(run).state.is_final(), 60)
        assert client.read_flow_run(run).state.is_completed()
    answer = api.asked(pages.api, f"/deployments/name/{ui.DEPLOYMENT}")
    shutil.copy(ROOT / "prefect.yaml", tmp_path)
    assert ui._is_deployed(project, *answer)
    assert not ui._is_deployed(tmp_path, *answer)
    assert not ui._is_deployed(project, 404, b"")


def test_initialising_starts_the_postman_it_kept_away(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(ui, "start_postman", started.append)

    def open_journal(*arguments):
        assert journal.is_locked(journal.lock_of_postman(tmp_path))
        with journal.open_journal(tmp_path, stage="early", params={}, tags={}):
            pass

    monkeypatch.setattr(database, "make", open_journal)
    (tmp_path / "work").mkdir()
    ui._initialise(tmp_path, {}, tmp_path / "work" / "setup.log")
    assert started == [tmp_path]
    assert not journal.is_locked(journal.lock_of_postman(tmp_path))
