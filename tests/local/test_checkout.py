"""What git says of a checkout."""

import subprocess

import pytest

from flows.local.checkout import state_of


@pytest.fixture
def git(tmp_path):
    def run(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return run


def test_no_repository_and_no_commit_have_no_state(tmp_path, git):
    assert state_of(tmp_path) is None
    git("init", "-q")
    assert state_of(tmp_path) is None


def test_state_follows_the_checkout(tmp_path, git):
    git("init", "-q", "-b", "trial")
    for name in ("a b.txt", "ü.txt", "gone.txt", "dvc.lock", "old.txt"):
        (tmp_path / name).write_text(name)
    git("add", ".")
    git("commit", "-qm", "x")
    state = state_of(tmp_path)
    assert (state.commit, state.branch, state.dirty) == (git("rev-parse", "HEAD"), "trial", "no")
    for name in ("a b.txt", "ü.txt", "dvc.lock", "untracked.txt"):
        (tmp_path / name).write_text("changed")
    (tmp_path / "gone.txt").unlink()
    git("mv", "old.txt", "new.txt")
    assert set(state_of(tmp_path).edited) == {"a b.txt", "ü.txt", "gone.txt", "new.txt"}
    git("checkout", "-q", "--detach")
    assert state_of(tmp_path).branch == ""


def test_many_edits_are_counted(tmp_path, git):
    git("init", "-q")
    for i in range(8):
        (tmp_path / f"{i}").write_text("")
    git("add", ".")
    git("commit", "-qm", "x")
    for i in range(8):
        (tmp_path / f"{i}").write_text("changed")
    assert state_of(tmp_path).dirty == "0, 1, 2, 3, 4 and 3 more"
