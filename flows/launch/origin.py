"""What made a report, which its own bytes do not say: commit, edited files, time, machine, versions.

All of that changes from run to run, while equal inputs must make an equal report: DVC tells versions apart by
their bytes, takes a result that it knows from its cache, and two people compare what they have by digests. So the
page in `reports/` says only what decides its numbers. The rest is noted in `work/made/`, by the page's digest: a
page that comes out of the cache again finds what made it first. `python -m flows.report` puts both into one file.
"""

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from flows.layout import ORIGINS, REPORTS
from flows.local.machine import device
from flows.local.process import pipeline_key
from fmcore.disk.files import sha256

PACKAGES = ("fmcore", "torch", "numpy", "dvc", "mlflow", "prefect")
GIT = "mlflow.source.git."


def note(root: Path, tags: Mapping[str, str]) -> None:
    """Notes what made the page that the stage `report` has just written; `tags` are those of its journal."""
    path = root / ORIGINS / f"{sha256(REPORTS / 'index.html')[:32]}.json"
    if path.exists():  # equal pages: the first is the one whose stages ran
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(_told(tags), indent=1, sort_keys=True) + "\n")
    part.replace(path)


def _told(tags: Mapping[str, str]) -> dict[str, Any]:
    return {
        "pipeline": pipeline_key(),
        "ended": time.time(),
        "commit": tags.get(f"{GIT}commit", ""),
        "branch": tags.get(f"{GIT}branch", ""),
        "edited": tags.get("fmcore.dirty", ""),
        "experiment": tags.get("dvc.exp", ""),
        "params": tags.get("fmcore.params", ""),
        "device": device(),
        "versions": {"Python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
