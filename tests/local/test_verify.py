"""`make verify` and `python -m flows.disk` on a real project: what is damaged, and what takes room."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from flows.disk.usage import files_of, rooms, unused
from flows.local.objects import object_path as path_in
from flows.where.checkout import locked
from repository import ROOT
from small_pipelines import dvc, git, make, ran

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A project that has run once, with DVC's cache in hard links."""
    project = make(tmp_path_factory.mktemp("disk") / "project")
    (project / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    dvc(project, "repro", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "run")
    return project


@pytest.fixture
def project(whole, tmp_path):
    """A copy, with its hard links."""
    subprocess.run(["cp", "-a", str(whole), str(tmp_path / "project")], check=True)
    return tmp_path / "project"


def call(project, module, *words):
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(project)}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def object_path(project, digest):
    return path_in(project / ".dvc/cache", digest)


def outs(project):
    return {path: out.md5 for path, out in locked((project / "dvc.lock").read_text()).items()}


def test_a_whole_checkout_is_verified(project):
    code, said = call(project, "flows.disk.verify")
    assert code == 0
    assert re.fullmatch(r"\d+ files, 0\.\d MB, read: 0 damaged\n", said)


def flip(path):
    """Changes a byte as a bad disk does: the file's time and mode stay."""
    state = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 4]))
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("name", ["base.txt", "reports/metrics.json", "cache"])
def test_a_flipped_byte_is_named_and_mended(project, name):
    digest = outs(project)["base.txt"]
    path = object_path(project, digest) if name == "cache" else project / name
    text = path.read_bytes()
    flip(path)
    code, said = call(project, "flows.disk.verify")
    assert code == 1
    assert f"{path.relative_to(project)}: " in said
    assert path.read_bytes() != text, "without --mend nothing is touched"
    code, said = call(project, "flows.disk.verify", "--mend")
    assert code == 0
    assert "was removed; dvc repro makes it again" in said
    ran(project)
    dvc(project, "repro", "-q")
    assert len(ran(project)) > 1, "what was made with it is made again"
    assert path.read_bytes() == text
    assert call(project, "flows.disk.verify")[0] == 0


def test_a_damaged_list_of_a_folder_is_named(project):
    path = object_path(project, outs(project)["reports"])
    flip(path)
    code, said = call(project, "flows.disk.verify")
    assert code == 1
    assert f"{path.relative_to(project)}: the object in DVC's cache has MD5" in said


def test_what_is_gone_is_told_and_is_no_damage(project):
    (project / "base.txt").unlink()
    code, said = call(project, "flows.disk.verify")
    assert code == 1, "not all is as it was written"
    assert "0 damaged" in said
    assert "base.txt: not here; dvc repro makes it, dvc pull brings it" in said


def test_each_file_is_counted_once(project):
    found = {row.where: row for row in rooms(project)}
    assert found["reports"].files == 1
    outs_and_cache = [*files_of(project / "reports"), *files_of(project / ".dvc/cache")]
    counted = sum(row.files for where, row in found.items() if where in ("reports", ".dvc/cache"))
    assert counted == len({path.stat().st_ino for path in outs_and_cache}) < len(outs_and_cache)


def test_a_prune_frees_what_nothing_has_and_keeps_experiments(project):
    params = (project / "params.yaml").read_text()
    dvc(project, "exp", "run", "-q", "--name", "kept", "-S", "seed=7")
    experiment = outs(project)["base.txt"]
    git(project, "checkout", "-q", "--", ".")
    (project / "params.yaml").write_text(params.replace("seed: 0", "seed: 5"))
    dvc(project, "repro", "-q")
    lost = outs(project)["base.txt"]
    (project / "params.yaml").write_text(params.replace("seed: 0", "seed: 6"))
    dvc(project, "repro", "-q")
    workspace = outs(project)["base.txt"]
    git(project, "stash", "-q")
    committed = outs(project)["base.txt"]
    git(project, "stash", "pop", "-q")
    assert object_path(project, lost) in unused(project)
    code, said = call(project, "flows.disk")
    assert code == 0
    assert re.search(r"A prune would free 0\.\d MB: 1 objects of DVC's cache", said)
    code, said = call(project, "flows.disk", "--prune")
    assert code == 0
    assert not object_path(project, lost).exists()
    for digest in (experiment, workspace, committed):
        assert object_path(project, digest).exists()
    assert unused(project) == []


def lockless(project):
    (project / "dvc.lock").unlink()


def torn(project):
    path = project / "dvc.lock"
    path.write_bytes(path.read_bytes()[:200])


def binary(project):
    (project / "dvc.lock").write_bytes(b"\xff\xfe\x00" * 50)


def shared(project):
    (project / ".dvc/cache").rename(project.parent / "shared")
    dvc(project, "cache", "dir", "--local", str(project.parent / "shared"))


def without_git(project):
    shutil.rmtree(project / ".git")
    (project / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")


@pytest.mark.parametrize("state", [lockless, torn, binary, shared, without_git])
def test_where_it_cannot_be_told_what_is_needed_nothing_is_pruned(project, state):
    state(project)
    place = project.parent / "shared" if state is shared else project / ".dvc/cache"
    before = {path for path in (place / "files/md5").rglob("*") if path.is_file()}
    assert len(before) > 3
    for words, expected in (((), 0), (("--prune",), 1)):
        code, said = call(project, "flows.disk", *words)
        assert code == expected
        assert "A prune would free" not in said
        assert "Freed" not in said
    assert {path for path in (place / "files/md5").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("state", [lockless, torn, binary])
def test_without_dvc_lock_nothing_is_called_verified(project, state):
    state(project)
    code, said = call(project, "flows.disk.verify")
    assert code == 1
    assert "dvc.lock is missing or torn, so no out was compared" in said


def test_a_cache_elsewhere_is_read_where_it_is(project):
    shared(project)
    flip(path_in(project.parent / "shared", outs(project)["base.txt"]))
    code, said = call(project, "flows.disk.verify")
    assert code == 1
    assert "2 damaged" in said, "the out is a link to it"


def test_both_know_their_checkout_from_a_folder_in_it(project):
    def told(where, module):
        code, said = call(where, module)
        return code, [line for line in said.splitlines() if not line.startswith("free on the disk")]

    for module in ("flows.disk", "flows.disk.verify"):
        assert told(project / "reports", module) == told(project, module)
