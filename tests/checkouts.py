"""Copies of the working tree in which tests run the pipeline through DVC."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Self

from ruamel.yaml import YAML

from flows.params.preset import rendered
from flows.watch.journal import lock_of_postman
from repository import ROOT

BIN = Path(sys.executable).parent
COPIED = ("fmcore", "flows", "presets", ".dvc", "dvc.yaml", ".dvcignore", ".gitignore", "params.yaml")


def environment(**more):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "DVC_"))}
    # A dead port: no test may write to a server that happens to run here.
    return env | {
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": os.environ["DVC_SITE_CACHE_DIR"],
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Checkout:
    """A copy of the repository's working tree with parameters of its own.

    Its journals stay where they are, as if a postman were at work, unless it is to have one (`postman`): that
    makes a database and tells MLflow everything, which costs seconds and which most tests do not look at.
    """

    def __init__(self, folder: Path, preset: str, *, postman: bool = False) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                skip = shutil.ignore_patterns("tmp", "cache", "config.local")
                shutil.copytree(source, folder / name, ignore=skip)
            else:
                shutil.copy(source, folder / name)
        with chdir(folder):
            (folder / "params.yaml").write_bytes(rendered(preset))
        self.run("git", "init", "-q")
        if not postman:
            self._without_postman()

    @classmethod
    def copied(cls, other: "Checkout", folder: Path) -> Self:
        """Another checkout with all that was made in it, without a postman."""
        told = ("work", "tmp", "mlflow.db*", "mlartifacts")  # a postman may be at it
        shutil.copytree(other.folder, folder, symlinks=True, ignore=shutil.ignore_patterns(*told))
        return cls.at(folder)

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The checkout that is there, without a postman."""
        self = cls.__new__(cls)
        self.folder = folder
        self._without_postman()
        return self

    def _without_postman(self) -> None:
        lock = lock_of_postman(self.folder)
        lock.parent.mkdir(parents=True)
        fcntl.flock(os.open(lock, os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)  # until the tests end

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.folder, env=environment(**env), capture_output=True, text=True, timeout=500
        )
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    def repro(self, *options: str, check: bool = True) -> "Outcome":
        return Outcome(self.run("dvc", "repro", *options, check=check))

    def edit(self, path: str, value: object) -> None:
        yaml = YAML()
        file = self.folder / "params.yaml"
        raw = yaml.load(file)
        *parents, last = path.split(".")
        at = raw
        for part in parents:
            at = at[part]
        at[last] = value
        yaml.dump(raw, file)

    def outputs(self) -> dict[str, bytes]:
        kept = ("models", "couplings", "curves", "scores", "features")
        files = (p for name in kept for p in sorted((self.folder / name).rglob("*")) if p.is_file())
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in files if p.name != ".gitignore"}


class Outcome:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        self.ran = re.findall(r"Running stage '([^']+)'", self.text)
