"""The form of Prefect's page, filled in over its API: what it refuses, and what a run from it does."""

import contextlib
import json
import time

import psutil
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from browser import CHROMIUM
from devtools import browsing
from prefect_page import NAME, SECONDS, ended, page, submit
from servers import QUIET, wait_until
from small_pipelines import git, ran

pytestmark = [pytest.mark.slow, *QUIET]


def tasks_of(page, run):
    return {task.name: task for task in page.client.read_task_runs() if task.flow_run_id == run}


def settled(page, run):
    """The run's tasks once nothing of its tree is at work: a stage's own run ends when the postman tells of it."""

    def found():
        tasks = tasks_of(page, run)
        above = {task.id for task in tasks.values()}
        below = [each for each in page.client.read_flow_runs() if each.parent_task_run_id in above]
        return tasks if all(each.state.is_final() for each in (*tasks.values(), *below)) else None

    return wait_until(found, SECONDS)


def lines_of(page, run):
    return [line.message for line in page.client.read_logs() if line.flow_run_id == run]


def own_files(project):
    """What the user may have edited, to the byte and to the time."""
    names = ("params.yaml", "stage.py", "dvc.yaml", "mine.txt", ".git/index")
    return [(path.stat().st_mtime_ns, path.read_bytes()) for path in map(project.joinpath, names)]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("preset", "smok", "'smok' is not one of ['params.yaml', 'digits',"),
        ("stages", ["bas"], "'bas' is not one of ['look', 'base', 'couple', 'report']"),
        ("rounds", -1, "-1 is less than the minimum of 0"),
        ("nfe", [1, 0], "0 is less than the minimum of 1"),
        ("nfe", [1, 1], "[1, 1] has non-unique elements"),
        ("seed", -2, "-2 is less than the minimum of -1"),
        ("overrides", ["cuple.nfe=8"], "'cuple.nfe=8' does not match"),
        ("overrides", {"cuple.nfe": 8}, "{'cuple.nfe': 8} is not valid"),
        ("experiment", "../x", "'../x' does not match"),
    ],
)
def test_the_form_refuses_at_once_what_cannot_be(page, field, value, reason):
    with pytest.raises(PrefectHTTPStatusError) as caught:
        submit(page, **{field: value})
    assert caught.value.response.status_code == 409
    assert f"Validation failed for field '{field}" in caught.value.response.json()["detail"]
    assert reason in caught.value.response.json()["detail"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_the_form_can_be_submitted_as_it_opens(page, tmp_path):
    deployment = page.client.read_deployment_by_name(NAME)
    known = {run.id for run in page.client.read_flow_runs()}
    with browsing(tmp_path, 1400, 1000) as tab:
        origin = page.server.address.removesuffix("/api")
        tab.open(origin)
        tab.wait_for("document.readyState === 'complete'")
        tab.value(f"localStorage.setItem('prefect-password', btoa({json.dumps(page.server.login)}))")
        tab.open(f"{origin}/deployments/deployment/{deployment.id}/run")
        submit_button = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === 'Submit')"
        tab.wait_for(f"document.body.innerText.includes('Number of reflow rounds') && !!{submit_button}")
        assert "Property is type" not in tab.value("document.body.innerText"), "a kind need not be chosen first"

        def submitted():
            # A click before the page has heard from its server finds an empty form: a person clicks again.
            tab.value(f"{submit_button} && !{submit_button}.disabled && {submit_button}.click()")
            with contextlib.suppress(AssertionError):
                return wait_until(lambda: [r for r in page.client.read_flow_runs() if r.id not in known], 30)

        run = wait_until(submitted, SECONDS)[0]
    assert run.parameters["preset"] == "params.yaml"
    assert ended(page, run.id).is_completed()


def test_a_mistake_that_only_the_rules_know_ends_the_run_in_one_line(page):
    run = submit(page, overrides=["couple.nfee=8"])
    state = ended(page, run)
    assert state.is_failed()
    assert state.message == "overrides: couple.nfee: unknown key; did you mean nfe?"
    assert not tasks_of(page, run)
    time.sleep(3)  # the engine's own lines come after the state
    assert not [line for line in lines_of(page, run) if "Traceback" in line]


def test_a_schedule_with_overrides_makes_experiments_and_leaves_the_checkout_alone(page):
    project, client = page.project, page.client
    (project / "mine.txt").write_text("mine")
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("seed: 0", "seed: 5"))
    before = own_files(project)
    deployment = client.read_deployment_by_name(NAME)
    body = [
        {
            "slug": "often",
            "active": True,
            "schedule": {"interval": 600},
            "parameters": {"overrides": ["couple.nfe=4"]},
        }
    ]
    made = client.request("POST", f"/deployments/{deployment.id}/schedules", json=body).json()

    def fired():
        assert own_files(project) == before
        return [run for run in client.read_flow_runs() if run.auto_scheduled and run.state.is_final()]

    # The next time would be minutes away, so the first run of the schedule is asked for now.
    first = wait_until(lambda: [run for run in client.read_flow_runs() if run.auto_scheduled], 60)
    soonest = min(first, key=lambda run: run.expected_start_time)
    client.request(
        "POST", f"/flow_runs/{soonest.id}/set_state", json={"state": {"type": "SCHEDULED"}, "force": True}
    )
    (run,) = wait_until(fired, SECONDS)
    client.request("DELETE", f"/deployments/{deployment.id}/schedules/{made[0]['id']}")
    assert run.state.is_completed(), run.state.message
    assert run.name.startswith("digits often "), run.name
    assert run.parameters == {"overrides": ["couple.nfe=4"]}
    name = run.labels["fmcore.experiment"]
    assert name == run.name.replace(" ", "-")
    (ref,) = git(project, "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}").split()
    assert "nfe: 4 " in git(project, "show", f"{ref}:params.yaml")
    assert "seed: 0\n" in git(project, "show", f"{ref}:params.yaml"), "of the commit, not of the edit"
    tasks = settled(page, run.id)
    assert {task.state.type.value for task in tasks.values()} == {"COMPLETED"}
    (shown,) = [found for found in client.read_artifacts() if found.flow_run_id == run.id]
    assert "**use r1. It is the best**" in shown.data
    assert f"dvc exp apply {name}" in shown.data
    assert f"[report](/runs/task-run/{tasks['report'].id})" in shown.data
    assert "| r1 | 0.04 |" in shown.data
    assert own_files(project) == before


def test_the_other_deployments_do_what_their_names_say(page):
    project = page.project
    assert ended(page, submit(page)).is_completed()
    ran(project)
    again = ended(page, submit(page))
    assert (again.name, again.message) == ("Cached", "nothing had changed")
    assert ran(project) == ["look"]

    assert ended(page, submit(page, "reflow-pipeline/retrain", new_data=True)).is_completed()
    assert ran(project) == ["look"]
    (project / "work/data").write_text("more")
    assert ended(page, submit(page, "reflow-pipeline/retrain", new_data=True)).is_completed()
    assert ran(project)[:2] == ["look", "base"]

    assert ended(page, submit(page, "reflow-stage/reflow-stage", stage="report")).is_completed()
    assert ran(project) == ["report"]

    run = submit(page, "reflow-sweep/reflow-sweep", grid={"couple.nfe": [8]}, stages=["report"], experiment="grid")
    state = ended(page, run)
    assert state.is_completed(), state.message
    assert state.message.startswith("1 experiments")
    (table,) = [found for found in page.client.read_artifacts() if found.flow_run_id == run]
    rows = json.loads(table.data)
    assert [row["couple.nfe"] for row in rows] == [8]
    assert [row["experiment"] for row in rows] == ["grid-1"]
    assert [next(v for k, v in row.items() if isinstance(v, float)) for row in rows] == [0.08]


def test_a_cancelled_run_leaves_nothing_running_and_the_next_one_goes_on(page):
    work = page.project / "work"
    (work / "slow").touch()
    (work / "pid").unlink(missing_ok=True)
    run = submit(page, seed=7)
    wait_until(lambda: (work / "steps-7").exists() and int((work / "steps-7").read_text()) > 3, SECONDS)
    stage = psutil.Process(int((work / "pid").read_text()))
    page.client.request("POST", f"/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}})
    assert ended(page, run).is_cancelled()
    assert not stage.is_running()
    reached = int((work / "steps-7").read_text())
    assert reached < 100

    tasks = settled(page, run)
    assert tasks["base"].state.is_cancelled()
    (work / "slow").unlink()
    again = submit(page, seed=7, stages=["base"])
    assert ended(page, again).is_completed()
    assert int((work / "steps-7").read_text()) == reached, "there was nothing to begin anew"
