"""A project with a pipeline of three small stages, the real params.yaml and git, to test what runs it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from repository import ROOT

GRAPH = """
stages:
  look:
    cmd: python stage.py look
    always_changed: true
    deps: [stage.py]
    outs: [seen.json]
  base:
    cmd: python stage.py base
    deps: [seen.json, stage.py]
    params: [seed]
    outs: [base.txt]
  couple:
    foreach: ${reflow.rounds}
    do:
      cmd: python stage.py couple
      deps: [base.txt]
      params: [couple.nfe]
      outs: ["couple-${key}.txt"]
  report:
    cmd: python stage.py report
    deps: [couple-r1.txt]
    outs: [reports]
metrics: [reports/metrics.json]
"""

# `base` takes two steps, or a hundred if there is a file `slow`, and goes on where it was; it fails if there is
# a file `broken`. All of them note that they ran.
STAGE = """
import json, os, signal, sys, time
from pathlib import Path
from ruamel.yaml import YAML
from flows.events import Progress
from flows.watch.journal import open_journal

signal.signal(signal.SIGTERM, lambda *about: sys.exit(143))
name, home = sys.argv[1], Path(os.environ["DVC_ROOT"])
params = YAML(typ="safe").load(Path("params.yaml"))
with (home / "work" / "ran").open("a") as file:
    print(os.environ["DVC_STAGE"], file=file)
if name == "base" and (home / "work" / "broken").exists():
    sys.exit("base: the stage says why")
def out(path, text):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)
if name == "look":
    data = home / "work" / "data"
    out("seen.json", json.dumps(data.read_text() if data.exists() else ""))
elif name == "base":
    steps, total = home / "work" / f"steps-{params['seed']}", 100 if (home / "work" / "slow").exists() else 2
    tags = {"fmcore.data": "digits", "dvc.exp": os.environ.get("DVC_EXP_NAME", "")}
    about = {"params": {"seed": params["seed"]}, "tags": tags, "place": Path.cwd()}
    with open_journal(home, stage="base", **about) as run:
        (home / "work" / "pid").write_text(str(os.getpid()))
        for done in range(int(steps.read_text()) if steps.exists() else 0, total + 1):
            run(Progress("train", done, total))
            steps.write_text(str(done))
            time.sleep(0.1)
    out("base.txt", f"seed {params['seed']}")
elif name == "couple":
    out(f"couple-{os.environ['DVC_STAGE'].partition('@')[2]}.txt", f"nfe {params['couple']['nfe']}")
else:
    made = Path("couple-r1.txt").read_text()
    print("report: use r1. It is the best", file=sys.stderr)
    out("reports/metrics.json", json.dumps({"fd": {"r1": {"nfe_001": float(made.split()[1]) / 100}}}))
"""


def git(folder, *words):
    known = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    done = subprocess.run(["git", *known, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def dvc(folder, *words):
    env = os.environ | {"DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(folder: Path) -> Path:
    """The project, committed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "stage.py").write_text(STAGE)
    (folder / ".gitignore").write_text("work\nflows\nui.out\nmlflow.db*\nmlartifacts\n")
    (folder / ".dvcignore").write_text("work\nflows\n")
    (folder / "work").mkdir()
    # One round: each stage is a process of DVC's.
    params = re.sub(r"\n +r2: .*", "", (ROOT / "presets/digits.yaml").read_text())
    (folder / "params.yaml").write_text(params)
    shutil.copy(ROOT / "prefect.yaml", folder)
    shutil.copytree(ROOT / "presets", folder / "presets")
    git(folder, "init", "-q")
    dvc(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return folder


def ran(folder: Path) -> list[str]:
    """The stages that have run since the last call."""
    path = folder / "work" / "ran"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found
