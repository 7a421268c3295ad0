"""What a checkout knows by itself: dvc.lock, here and in DVC's experiments, git, DVC's cache."""

import json
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from flows.local.checkout import State, state_of
from flows.local.lockfile import CODE, LOCK_FILE
from flows.local.objects import cache_of, listed, object_path
from flows.local.objects import md5 as file_md5

GIT_SECONDS = 60


class Out(NamedTuple):
    """An output as dvc.lock has it: its path, DVC's digest, the stage, and what that stage read, code left out.

    `stage` is empty where nothing says which one made it.
    """

    path: str
    md5: str
    stage: str = ""
    inputs: tuple[tuple[str, str], ...] = ()


class Experiment(NamedTuple):
    """A DVC experiment: its name, its own commit and the one it starts from."""

    name: str
    commit: str
    baseline: str


class Checkout:
    """A checkout, read and never written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def state(self) -> State | None:
        """The commit that is checked out, and what differs from it."""
        return state_of(self.root)

    @cached_property
    def outs(self) -> dict[str, Out]:
        """The outputs in dvc.lock, by path."""
        path = self.root / LOCK_FILE
        return locked(path.read_text()) if path.exists() else {}

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """DVC's experiments by name, of the newest commit where a name is there twice."""
        found: dict[str, Experiment] = {}
        listed = self.git("for-each-ref", "--sort=creatordate", "--format=%(objectname) %(refname)", "refs/exps")
        for line in listed.splitlines():
            commit, ref = line.split(" ", 1)
            parts = ref.split("/")
            if len(parts) == 5 and len(parts[2]) == 2:  # refs/exps/BA/SELINE.../NAME; others are of DVC's queue
                found[parts[4]] = Experiment(parts[4], commit, parts[2] + parts[3])
        return found

    def outs_at(self, revision: str) -> dict[str, Out]:
        """The outputs that dvc.lock has in a commit, by path."""
        return locked(self.git("show", f"{revision}:./{LOCK_FILE}"))

    def since(self, md5: str) -> str:
        """The commit in which dvc.lock first had a digest, empty if there is none."""
        lines = self.git("log", "--format=%H", f"-S{md5}", "--", LOCK_FILE).split()
        return lines[-1] if lines else ""

    def differs(self, out: Out, file: str = "") -> str:
        """How an output, or a file in it, differs here from DVC's record, in words; empty if it does not."""
        from dvc.exceptions import OutputNotFoundError
        from dvc.repo import Repo

        try:
            with Repo(str(self.root)) as repo:
                (found,) = repo.find_outs_by_path(str(self.root / out.path), strict=True)
                word = next(iter(found.workspace_status().values()), "")
        except OutputNotFoundError:
            return "dvc.yaml has no such output any more"
        if word == "modified" and file and file != out.path:  # it may be another file of the folder that is
            known = self.files(out.md5).get(str(Path(file).relative_to(out.path)))
            word = "deleted" if not (self.root / file).exists() else word
            word = "" if word == "modified" and known == file_md5(self.root / file) else word
        return f"{word.upper()} here since" if word else ""

    def files(self, md5: str) -> dict[str, str]:
        """The digests of the files in a folder with that digest, by relative path; none if not cached."""
        return listed(self._cache, md5)

    def manifest(self, md5: str) -> dict[str, Any]:
        """The manifest in a folder with that digest, from the cache; empty if there is none."""
        inner = self.files(md5).get("manifest.json")
        path = self.cached(inner) if inner else None
        found = json.loads(path.read_text()) if path and path.exists() else {}
        return found if isinstance(found, dict) else {}

    def cached(self, md5: str) -> Path:
        """Where DVC's cache has the bytes with that digest, if it has them."""
        return object_path(self._cache, md5)

    @cached_property
    def _cache(self) -> Path:
        return cache_of(self.root)

    def git(self, *words: str) -> str:
        """What git says, empty where it fails."""
        command = ["git", "--no-optional-locks", *words]
        try:
            done = subprocess.run(
                command,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=GIT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""


def root_above(folder: Path) -> Path | None:
    """The checkout that a folder is in: the nearest one with a dvc.yaml, None if there is none."""
    return next((path for path in (folder, *folder.parents) if (path / "dvc.yaml").is_file()), None)


def locked(text: str) -> dict[str, Out]:
    """The outputs in the text of a dvc.lock, by path; none where it is torn.

    >>> lock = "stages: {base: {deps: [{path: dataset, md5: 1a.dir}], outs: [{path: models/base, md5: 2b.dir}]}}"
    >>> locked(lock)["models/base"]
    Out(path='models/base', md5='2b.dir', stage='base', inputs=(('dataset', '1a.dir'),))
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        stages = (YAML(typ="safe").load(text) or {}).get("stages") or {}
        return {out.path: out for stage, entry in stages.items() for out in _outs(stage, entry)}
    except (YAMLError, AttributeError, KeyError, TypeError):
        return {}


def _outs(stage: str, entry: Mapping[str, Any]) -> list[Out]:
    read = [(item["path"], item["md5"]) for item in entry.get("deps", []) if "md5" in item]
    inputs = tuple((path, md5) for path, md5 in read if not path.startswith(CODE))
    return [Out(item["path"], item["md5"], stage, inputs) for item in entry.get("outs", []) if "md5" in item]
