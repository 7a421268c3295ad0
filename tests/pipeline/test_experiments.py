"""Variations run as DVC experiments beside the user's checkout, which stays as it is, byte for byte."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from flows.params.files import ParamsError
from flows.params.variation import Variation, parsed
from flows.pipeline import experiments, work
from flows.pipeline.children import Children
from flows.pipeline.experiments import CannotRun
from flows.pipeline.work import Wish
from repository import ROOT
from servers import wait_until
from small_pipelines import dvc, git, make, ran

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of DVC's own


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose checkout has run, with edits that are not committed and a file that git does not know."""
    folder = make(tmp_path_factory.mktemp("experiments"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        yield folder


def run(project, overrides=None, **wish):
    """What came of each stage of a run, and the name of the experiment, if it was one."""
    wanted = Wish(variation=Variation(overrides=parsed(overrides)), **wish)
    lines = []
    with work.placed(project, wanted, "made-up") as job, Children() as children:
        outcomes = work.walk(job, lambda visit: work.reproduced(job, children, visit, lines.append))
        if work.failure(outcomes) is None:
            work.keep(job, outcomes)
    name = job.experiment.name if job.experiment else None
    return {outcome.stage: outcome for outcome in outcomes}, name, lines


def ends(outcomes):
    return {stage: outcome.end for stage, outcome in outcomes.items()}


def everything(project):
    """Each file of the checkout but those below work, .git and DVC's cache, with the time of its last change.

    The postman writes MLflow's database whenever it comes to it.
    """
    found = {}
    for folder, folders, names in os.walk(project):
        folders[:] = sorted({*folders} - {"work", ".git", "cache", "tmp"})
        for name in names:
            if name.startswith("mlflow.db"):
                continue
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[path] = (os.stat(path).st_mtime_ns, file.read())
    index = (project / ".git/index").read_bytes()
    return found, index, git(project, "status", "--porcelain"), git(project, "rev-parse", "HEAD")


def shown(project):
    """Each experiment's parameters and metrics, as `dvc exp show` has them."""
    (commit,) = [rev for rev in json.loads(dvc(project, "exp", "show", "--json")) if rev["rev"] != "workspace"]
    found = {}
    for experiment in commit["experiments"] or []:
        (revision,) = experiment["revs"]
        data = revision["data"]
        metrics = data["metrics"]["reports/metrics.json"]["data"]["fd"]["r1"]["nfe_001"]
        found[revision["name"]] = (data["params"]["params.yaml"]["data"], metrics)
    return found


def test_an_override_runs_beside_a_dirty_checkout_and_can_be_compared_and_promoted(project, tmp_path):
    first, name, _ = run(project)
    assert name is None
    assert set(ends(first).values()) == {"done"}
    ran(project)
    (project / "stage.py").write_text((project / "stage.py").read_text() + "# edited\n")
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("seed: 0", "seed: 5"))
    (project / "untracked.txt").write_text("mine")
    before = everything(project)

    outcomes, name, _ = run(project, ["couple.nfe=8"], experiment="eight")
    assert everything(project) == before
    assert name == "eight"
    assert ends(outcomes) == {
        "look": "done", "base": "cached", "couple@r1": "done", "report": "done"
    }, "what the checkout has made of the commit is taken from DVC's cache"  # fmt: skip
    assert "couple.nfe changed" in outcomes["couple@r1"].text
    assert ran(project) == ["look", "couple@r1", "report"]
    _, name, _ = run(project, ["couple.nfe=4"], experiment="eight")
    assert name == "eight-2", "of a name that is taken there is another one"
    assert everything(project) == before
    of_experiment = shown(project)
    assert {key: (params["couple"]["nfe"], fd) for key, (params, fd) in of_experiment.items()} == {
        "eight": (8, 0.08), "eight-2": (4, 0.04)
    }  # fmt: skip
    assert {params["seed"] for params, _ in of_experiment.values()} == {0}, "of the commit, not of the edit"

    copy = shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("work"))
    git(copy, "stash", "--include-untracked")
    dvc(copy, "exp", "apply", "eight")
    assert "nfe: 8" in (copy / "params.yaml").read_text()
    assert (copy / "couple-r1.txt").read_text() == "nfe 8"
    dvc(copy, "exp", "branch", "eight", "promoted")
    assert "nfe: 8" in git(copy, "show", "promoted:params.yaml")


def test_a_snapshot_takes_edits_along(project):
    before = everything(project)
    outcomes, name, _ = run(project, ["couple.nfe=2"], snapshot=True)
    assert everything(project) == before
    assert name == "made-up"
    assert set(ends(outcomes).values()) == {"done"}
    params, fd = shown(project)[name]
    assert (params["seed"], params["couple"]["nfe"], fd) == (5, 2, 0.02)
    ref = git(project, "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}").strip()
    assert git(project, "show", f"{ref}:untracked.txt") == "mine"
    assert git(project, "show", f"{ref}:stage.py").endswith("# edited\n")


def test_results_of_another_experiment_are_not_taken_for_this_ones(project):
    run(project, ["seed=11"], stages=("base",), experiment="base-alone")
    lock = git(project, "show", f"{experiment_ref(project, 'base-alone')}:dvc.lock")
    assert "base:" in lock
    assert "report:" not in lock


def experiment_ref(project, name):
    (found,) = git(project, "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}").split()
    return found


@pytest.mark.parametrize("name", ["../x", "-x", "a b", "a/b", "x.lock", "", "é", "a" * 65, "x\n"])
def test_no_name_of_an_experiment_is_a_path_or_an_option(project, name):
    with pytest.raises(CannotRun, match="experiment: expected a name of letters"):
        experiments.checked_name(name)


def test_a_mistake_or_a_second_one_starts_nothing(project):
    before = everything(project)
    ran(project)
    with pytest.raises(ParamsError, match=r"overrides: couple.nfee: unknown key; did you mean nfe\?"):
        run(project, ["couple.nfee=8"])
    with (project / "work/experiments/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CannotRun, match="another experiment of this checkout is running"):
            run(project, ["couple.nfe=8"])
    assert ran(project) == []
    assert everything(project) == before


def test_without_a_commit_it_is_refused_in_one_line(tmp_path):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(CannotRun, match=r"^an experiment starts from a commit, and there is none here: .*$"):
        run(tmp_path, ["couple.nfe=8"])
    git(tmp_path, "init", "-q")
    with pytest.raises(CannotRun, match=r"^an experiment starts from a commit, and there is none here: .*$"):
        run(tmp_path, ["couple.nfe=8"])
    (tmp_path / "else").touch()
    git(tmp_path, "add", "else")
    git(tmp_path, "commit", "-qm", "one")
    with pytest.raises(
        CannotRun, match=r"^an experiment starts from a commit, and \w{8} lacks params.yaml: commit it$"
    ):
        run(tmp_path, ["couple.nfe=8"])


def test_what_is_up_to_date_starts_no_process_but_the_look(project, monkeypatch):
    git(project, "checkout", "-q", ".")
    run(project)
    started = []
    popen = subprocess.Popen

    def counted(command, *arguments, **options):
        started.append(command)
        return popen(command, *arguments, **options)

    monkeypatch.setattr("flows.pipeline.children.subprocess.Popen", counted)
    outcomes, _, _ = run(project)
    assert [command[-1] for command in started] == ["look"], outcomes
    assert {outcomes[stage].text for stage in ("base", "couple@r1", "report")} == {work.FRESH}
    (project / "work" / "broken").touch()
    try:
        outcomes, _, _ = run(project, force=True)
    finally:
        (project / "work" / "broken").unlink()
    assert ends(outcomes) == {
        "look": "done", "base": "failed", "couple@r1": "skipped", "report": "skipped"
    }  # fmt: skip
    assert outcomes["base"].text == "stage 'base' failed: the stage says why"


def test_the_command_line_makes_experiments_too(project):
    command = [sys.executable, "-m", "flows.pipeline", "--set", "couple.nfee=8", "--experiment", "typed"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "overrides: couple.nfee: unknown key; did you mean nfe?"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_killed_stage_is_started_again_and_goes_on(project):
    steps = project / "work/steps-13"
    (project / "work/slow").touch()

    def kill():
        wait_until(lambda: steps.exists() and int(steps.read_text() or 0) > 3, 60)
        (project / "work/slow").unlink()  # so that the next one has little to do
        os.kill(int((project / "work/pid").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes, *_ = run(project, ["seed=13"], stages=("base",))
    killer.join()
    assert outcomes["base"].end == "done"
    assert int(steps.read_text()) > 3, "it went on where it was"


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_stopped(project):
    (project / "work/slow").touch()
    outcomes, *_ = run(project, ["seed=12"], stages=("base",), seconds=5.0)
    (project / "work/slow").unlink()
    assert outcomes["base"].end == "failed"
    assert "stage 'base' took longer than 5 s; a further run goes on from there" in outcomes["base"].text
