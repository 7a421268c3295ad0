"""A disk that is full, at each stage and at several moments: one error, and with room the same bytes as ever."""

import subprocess
import sys

import pytest

from repository import ROOT

pytestmark = pytest.mark.slow
MAY_MOUNT = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0

# It runs in a namespace of its own, where a small disk of memory can be mounted.
SCRIPT = """
import os, shutil, subprocess, sys
from pathlib import Path
import pytest
from stage_runs import checkpoints_at_every_record, run, small, tiny
from written import contents

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(disk)], check=True)
os.chdir(disk)
checkpoints_at_every_record(pytest.MonkeyPatch())
params = tiny(base__train=small(5000), couple__pairs=400, reflow__train=small(2500), distill__train=small(2500))
OUTS = {"intake": "dataset", "features": "features", "base": "models/base", "couple@r1": "couplings/r1"}
OUTS |= {"reflow@r1": "models/r1", "distill@student": "models/student", "evaluate@r1": "scores/r1"}
list(run(params, "check"))

def used():
    return sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())

for stage, out in OUTS.items():
    before = used()
    list(run(params, stage))
    whole, grew = contents(disk / out), used() - before
    for share in (0.0, 0.3, 0.6, 0.9):
        shutil.rmtree(disk / out)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(0, shutil.disk_usage(disk).free - int(share * grew)))
        try:
            list(run(params, stage))
        except OSError as error:
            said = str(error).lower()
            assert "space" in said or "input/output" in said, (stage, share, error)
        else:
            raise AssertionError(f"{stage} had room enough with {share} of {grew} bytes")
        assert not (disk / out).exists() or contents(disk / out) == whole, (stage, share)
        ballast.unlink()
        list(run(params, stage))
        assert contents(disk / out) == whole, (stage, share)
    print(stage, grew, "bytes", flush=True)
"""


@pytest.mark.skipif(not MAY_MOUNT, reason="may not mount a disk of memory here (unshare -rm)")
@pytest.mark.timeout(600)
def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path):
    command = ["unshare", "-rm", sys.executable, "-c", SCRIPT, str(tmp_path)]
    env = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(" bytes\n") == 7
