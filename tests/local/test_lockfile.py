"""What DVC writes: a torn dvc.lock is mended, a kill loses nothing, and nobody else's pickles are read."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.launch.runner import run
from flows.local import lockfile
from repository import ROOT
from servers import PYTHON

pytestmark = pytest.mark.slow

MANY = 500  # dependencies: they make DVC write for a while
GRAPH = """
stages:
  a:
    cmd: echo a >> ran && echo a > a.txt
    deps: [{many}]
    outs: [a.txt]
  b:
    cmd: echo b >> ran && cp a.txt b.txt
    deps: [a.txt, {many}]
    outs: [b.txt]
  c:
    cmd: echo c >> ran && cp b.txt c.txt
    deps: [b.txt]
    outs: [c.txt]
"""


@pytest.fixture
def project(tmp_path):
    """Three stages, each of which notes that it ran, and what `make repro` needs."""
    names = [f"deps/{i}" for i in range(MANY)]
    (tmp_path / "deps").mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "dvc.yaml").write_text(GRAPH.format(many=", ".join(names)))
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / "ready").touch()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    subprocess.run([PYTHON, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    return tmp_path


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}


def kill_while_writing(project, number):
    """Runs `dvc repro` and ends it as dvc.lock, which held stage a, is written anew for stage b."""
    lock = project / "dvc.lock"
    running = subprocess.Popen(
        [PYTHON, "-m", "dvc", "repro"], cwd=project, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    largest = 0
    while True:
        assert running.poll() is None, "it was over before it could be killed"
        size = lock.stat().st_size if lock.exists() else 0
        if size < largest:
            os.killpg(running.pid, number)
            break
        largest = max(largest, size)
    running.wait()
    assert lock.stat().st_size < largest


def plain_repro(project):
    return subprocess.run(
        [PYTHON, "-m", "dvc", "repro"], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )


def make_repro(project):
    command = ["make", "-f", str(ROOT / "Makefile"), "repro", f"VENV={Path(sys.prefix)}", "READY=ready"]
    return subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=False)


def parent_flow(project):
    command = [PYTHON, "-m", "flows.pipeline"]
    env = environment() | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("again", "number"), [(make_repro, signal.SIGKILL), (parent_flow, signal.SIGINT)])
def test_a_kill_while_dvc_lock_is_written_loses_nothing(project, again, number):
    kill_while_writing(project, number)
    done = again(project)
    assert done.returncode == 0, done.stdout + done.stderr
    if (project / "dvc.lock.broken").exists():
        assert "dvc.lock cannot be used" in done.stdout + done.stderr
        assert "It is kept as dvc.lock.broken" in done.stdout + done.stderr
    assert sorted((project / "ran").read_text().split()) == ["a", "b", "c"], "each once"
    assert (project / "c.txt").read_text() == "a\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own
def test_every_torn_dvc_lock_is_mended_or_harmless(project, monkeypatch):
    graph = project / "dvc.yaml"
    graph.write_text(GRAPH.format(many="deps/0"))
    monkeypatch.chdir(project)
    assert plain_repro(project).returncode == 0
    lock = project / "dvc.lock"
    whole = lock.read_bytes()
    ends = {i + 1 for i, byte in enumerate(whole) if byte == ord("\n")} - {len(whole)}
    for cut in {*range(1, len(whole), 5)} - ends:
        lock.write_bytes(whole[:cut])
        assert lockfile.mend(project)
        assert not lock.exists()
    for cut in [0, *sorted(ends)[::3]]:
        lock.write_bytes(whole[:cut])
        lockfile.mend(project)
        with Repo() as repo:
            repo.reproduce()
    assert sorted((project / "ran").read_text().split()) == ["a", "b", "c"], "restored, not run"
    assert lockfile.mend(project) is None


def test_a_stage_does_not_run_on_a_torn_dvc_lock(tmp_path, monkeypatch, capsys):
    """DVC takes a stage whose digest is cut short for one that has changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lockfile, "WRITING_SECONDS", 0.1)
    lock = tmp_path / "dvc.lock"
    for text, torn in (("", True), ("a\n", False), ("a", True), ("a\nmd5: 46", True)):
        lock.write_text(text)
        assert lockfile.is_torn(tmp_path) == torn
    assert run("base") == 2
    assert "mend it: python -m flows.local.lockfile" in capsys.readouterr().err
    writer = threading.Timer(0.05, lambda: lock.write_text("a\n"))
    writer.start()
    assert not lockfile.is_torn(tmp_path), "DVC was at it"
    writer.join()


def test_a_stage_that_fails_is_not_taken_for_a_torn_file(project):
    graph = project / "dvc.yaml"
    graph.write_text(graph.read_text().replace("cp a.txt b.txt", "false"))
    done = make_repro(project)
    assert done.returncode != 0
    assert "cannot be used" not in done.stdout + done.stderr
    assert (project / "ran").read_text().split() == ["a", "b"], "not tried again"


def test_a_dvc_lock_that_is_being_written_is_left_alone(project):
    """By another process, which holds DVC's lock meanwhile."""
    assert plain_repro(project).returncode == 0
    code = "from dvc.repo import Repo\nwith Repo('.') as r, r.lock:\n print('held', flush=True); input()"
    holder = subprocess.Popen(
        [PYTHON, "-c", code], cwd=project, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        (project / "dvc.lock").write_text("")
        assert lockfile.mend(project) is None
        assert (project / "dvc.lock").exists()
    finally:
        holder.communicate("\n")


def test_dvc_keeps_its_pickles_where_nobody_else_can_write(project, tmp_path):
    """By default they lie in a folder of all users, and `dvc checkout` loads what another one put there."""
    env = {key: value for key, value in environment().items() if key != "DVC_SITE_CACHE_DIR"}
    env["XDG_CACHE_HOME"] = str(tmp_path / "caches")
    (tmp_path / "caches" / "fmcore").mkdir(parents=True, mode=0o777)
    command = ["make", "-f", str(ROOT / "Makefile"), "private", f"VENV={sys.prefix}", "READY=ready"]
    subprocess.run(command, cwd=project, env=env, check=True, capture_output=True)
    said = subprocess.run(
        [PYTHON, "-m", "dvc", "doctor"], cwd=project, env=env, check=True, capture_output=True, text=True
    )
    (line,) = [line for line in said.stdout.splitlines() if line.startswith("Repo.site_cache_dir")]
    folder = Path(line.partition(": ")[2])
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "caches" / "fmcore" / "dvc")
    assert (tmp_path / "caches" / "fmcore").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("torn", ["", '{"write": {"a.txt": {"pid"'])
def test_a_torn_list_of_who_is_at_work_is_removed(project, torn, capsys):
    (project / ".dvc/tmp").mkdir(exist_ok=True)
    (project / ".dvc/tmp/rwlock").write_text(torn)
    assert "JSON structure is corrupted" in plain_repro(project).stderr, "DVC mends it not itself"
    assert lockfile.mend(project) == (
        "a kill had torn .dvc/tmp/rwlock, DVC's list of who is at work; it is removed"
    )
    assert plain_repro(project).returncode == 0
    assert lockfile.mend(project) is None
