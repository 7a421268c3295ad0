"""Variations run as DVC experiments in a clone, so that the user's checkout is read and never written.

    checkout --commit, or what is there now--> work/experiments/checkout --stages run--> `dvc exp save`
    checkout <------------------------------ refs/exps/... ----------------------------------'

`dvc exp run` itself would rewrite params.yaml and the code of the checkout for moments, also with --queue and
--temp, and a training that runs there meanwhile would read them. The clone shares DVC's cache, so what has run in
one place is restored in the other. Unfinished work, journals and data lie in the checkout (`DVC_ROOT`).
"""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from flows.params.files import FILE, flattened
from flows.params.variation import Variation, varied

PLACE = Path("work/experiments")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
LOCK_FILE = "dvc.lock"
GIT_SECONDS = 600


class CannotRun(ValueError):
    """An experiment cannot be made here; the message says why in a line."""


class Experiment(NamedTuple):
    """An experiment that is ready to run: its name, where its stages run, and the commit it starts from.

    `home` is the user's checkout, `root` the same folder in the clone.
    """

    name: str
    home: Path
    root: Path
    commit: str

    @property
    def environment(self) -> dict[str, str]:
        """What its stages need to know."""
        return {"DVC_ROOT": str(self.home), "DVC_EXP_NAME": self.name, "DVC_EXP_BASELINE_REV": self.commit}

    @property
    def ref(self) -> str:
        """The git reference that DVC keeps it under."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{self.name}"


def checked_name(name: str) -> str:
    """The name of an experiment, which is part of a path and of a git reference.

    Raises:
        CannotRun: if it cannot be one.
    """
    if not NAME.fullmatch(name):
        raise CannotRun(f"experiment: expected a name of letters, digits, - and _, 64 at most, got {name[:80]!r}")
    return name


@contextmanager
def opened(home: Path, variation: Variation, *, name: str, snapshot: bool) -> Iterator[Experiment]:
    """An experiment with these parameters in the clone, which nobody else uses meanwhile.

    `snapshot` takes the files as they are now, uncommitted edits too, else they are those of the commit. A name
    that is taken gets a number.

    Raises:
        CannotRun: where there is no commit, or another experiment runs.
        ParamsError: if the parameters are wrong.
    """
    checked_name(name)
    params = params_of(home, variation, snapshot=snapshot)
    commit, prefix = _commit_of(home)
    place = home / PLACE
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRun("another experiment of this checkout is running; wait for it") from None
        clone = place / "checkout"
        _cloned(home, clone)
        made = Experiment(_free(home, commit, name), home, clone / prefix, commit)
        _fill(made, clone, snapshot=snapshot)
        (made.root / FILE).write_bytes(params)
        yield made


def params_of(home: Path, variation: Variation, *, snapshot: bool) -> bytes:
    """The parameter file of an experiment.

    Raises:
        CannotRun: where there is no commit.
        ParamsError: if the parameters are wrong.
    """
    commit, _ = _commit_of(home)
    text = (home / FILE).read_bytes() if snapshot else _committed(home, f"{commit}:./{FILE}")
    return varied(home, text, variation) if variation else text


def metrics_of(home: Path, name: str) -> dict[str, float]:
    """The numbers that `dvc exp show` has of an experiment, by dotted name; none if there is no such."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(home)) as repo:
            shown = repo.metrics.show(revs=[name])
    except DvcException:
        return {}
    files = shown.get(name, {}).get("data", {})
    numbers = {key: value for file in files.values() for key, value in flattened(file.get("data", {})).items()}
    return {key: value for key, value in numbers.items() if isinstance(value, int | float)}


def edited(home: Path) -> list[str]:
    """The tracked files of the checkout that differ from its commit."""
    lines = _git(home, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    return [line[3:] for line in lines if not line.endswith(LOCK_FILE)]


def kept(
    experiment: Experiment, stages: Collection[str], dvc: Sequence[str], environment: Mapping[str, str]
) -> str:
    """Saves what `stages` made as an experiment, brings it to the user's checkout, and returns its commit.

    Raises:
        CannotRun: if DVC or git cannot.
    """
    _prune(experiment, stages)
    command = [*dvc, "exp", "save", "--name", experiment.name, *stages]
    env = _bare() | dict(environment) | _identity(experiment.root)
    done = subprocess.run(
        command,
        cwd=experiment.root,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotRun(f"DVC did not keep experiment {experiment.name}: {_last(done.stderr)}")
    fetched = f"{experiment.ref}:{experiment.ref}"
    # From the clone, by its path: no name from anywhere is a command or an address here.
    _git(experiment.home, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(experiment.root), fetched)
    return _git(experiment.home, "rev-parse", experiment.ref).stdout.strip()


def _commit_of(home: Path) -> tuple[str, Path]:
    """The commit that is checked out, and the project's folder in the repository."""
    try:
        head = _git(home, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        prefix = _git(home, "rev-parse", "--show-prefix").stdout.strip()
    except CannotRun:
        raise CannotRun(
            "an experiment starts from a commit, and there is none here: git add -A && git commit -m first"
        ) from None
    commit, folder = head.stdout.strip(), Path(prefix)
    for name in (FILE, Path("dvc.yaml"), Path(".dvc/config")):
        try:
            _git(home, "cat-file", "-e", f"{commit}:./{name}")
        except CannotRun:
            raise CannotRun(
                f"an experiment starts from a commit, and {commit[:8]} lacks {name}: commit it"
            ) from None
    return commit, folder


def _committed(home: Path, what: str) -> bytes:
    return _git(home, "show", what).stdout.encode()


def _free(home: Path, commit: str, name: str) -> str:
    """The name, with a number if another experiment has it: promoting one goes by its name alone."""
    taken = {
        line.rpartition("/")[2]
        for line in _git(home, "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    }
    if name not in taken:
        return name
    return next(other for other in (f"{name[:58]}-{number}" for number in range(2, 100_000)) if other not in taken)


def _cloned(home: Path, clone: Path) -> None:
    """Makes the clone, whole or not at all."""
    top = Path(_git(home, "rev-parse", "--show-toplevel").stdout.strip())
    if (clone / ".git").is_dir():
        return
    part = clone.with_name("part")
    shutil.rmtree(part, ignore_errors=True)
    _git(home, "clone", "--quiet", "--no-checkout", "--no-tags", str(top), str(part))
    part.replace(clone)


def _fill(experiment: Experiment, clone: Path, *, snapshot: bool) -> None:
    """Puts the files of the commit, or those of the checkout as they are now, into the clone."""
    home, commit = experiment.home, experiment.commit
    top = Path(_git(home, "rev-parse", "--show-toplevel").stdout.strip())
    lock = experiment.root / LOCK_FILE
    known = lock.read_bytes() if lock.exists() else None
    for left in (clone / ".git").glob("*.lock"):  # of a git that was killed
        left.unlink()
    # By its name: a commit without a branch is not in what a fetch brings by itself.
    _git(clone, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(top), commit)
    _git(clone, "checkout", "--quiet", "--force", "--detach", commit)
    if snapshot:
        tree = _tree_of(home, top, clone)
        _git(clone, "read-tree", "-u", "--reset", tree)
        _git(clone, "reset", "--quiet", "--soft", commit)
    _git(clone, "clean", "--quiet", "-ffd")  # what an earlier state had; what is ignored, as outputs are, stays
    _configure(experiment)
    if not _is_tracked(clone, lock) and (known := known or _bytes_of(home / LOCK_FILE)):
        lock.write_bytes(known)  # what was known before, so that DVC need not look up each stage


def _tree_of(home: Path, top: Path, clone: Path) -> str:
    """A git tree of the files as they are now, kept in the clone; the checkout's own index stays as it is."""
    index = clone.with_name("index")
    index.unlink(missing_ok=True)
    env = {
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(clone / ".git/objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(_objects(home)),
    }
    _git(top, "read-tree", "HEAD", env=env)
    _git(top, "add", "--all", ".", env=env)
    return _git(top, "write-tree", env=env).stdout.strip()


def _objects(home: Path) -> Path:
    return (home / _git(home, "rev-parse", "--git-path", "objects").stdout.strip()).resolve()


def _configure(experiment: Experiment) -> None:
    """The clone's DVC is the checkout's: the same cache, remotes and settings."""
    from dvc.config import Config
    from dvc.repo import Repo

    own, made = experiment.home / ".dvc/config.local", experiment.root / ".dvc/config.local"
    if own.exists():
        shutil.copyfile(own, made)
    made.touch()
    made.chmod(0o600)  # a remote's password may stand there
    with Repo(str(experiment.home)) as repo:
        cache = repo.cache.local_cache_dir
    with Config(str(experiment.root / ".dvc"), validate=False).edit("local") as settings:
        settings.setdefault("cache", {})["dir"] = cache


def _prune(experiment: Experiment, stages: Collection[str]) -> None:
    """Leaves in dvc.lock what ran in this experiment, and the commit's word on the rest.

    Others may stand there from an experiment before, and DVC would show their results as this one's.
    """
    path = experiment.root / LOCK_FILE
    if not path.exists():
        return
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    lock: dict[str, Any] = yaml.load(path)
    try:
        before: dict[str, Any] = yaml.load(_committed(experiment.root, f"HEAD:./{LOCK_FILE}"))["stages"]
    except CannotRun:
        before = {}
    entries = {name: entry for name, entry in lock["stages"].items() if name in stages}
    found = {name: entry for name, entry in before.items() if name not in stages} | entries
    if found != lock["stages"]:
        with path.open("w") as file:
            yaml.dump({**lock, "stages": found}, file)


def _is_tracked(clone: Path, path: Path) -> bool:
    return bool(_git(clone, "ls-files", "--", str(path)).stdout)


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _identity(folder: Path) -> dict[str, str]:
    """Who commits: the user, or somebody where git knows none, which would refuse."""
    try:
        _git(folder, "var", "GIT_COMMITTER_IDENT")
    except CannotRun:
        return {f"GIT_{role}_{part}": "fmcore" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    return {}


def _bare() -> dict[str, str]:
    """The environment without git's own variables, which would lead it to another repository."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"LC_ALL": "C"}


def _git(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    settings = [
        "-c",
        "gc.auto=0",
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "advice.detachedHead=false",
    ]
    command = ["git", "--no-optional-locks", *settings, *words]
    try:
        done = subprocess.run(
            command, cwd=folder, env=_bare() | dict(env or {}), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="surrogateescape", timeout=GIT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRun(f"git {words[0]}: {error}") from None
    if done.returncode:
        raise CannotRun(f"git {words[0]}: {_last(done.stderr) or done.returncode}")
    return done


def _last(text: str) -> str:
    return next((line for line in reversed(text.strip().splitlines()) if line.strip()), "").strip()[:300]
