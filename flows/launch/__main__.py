"""`python -m flows.launch`: the command of every stage in dvc.yaml.

DVC says in DVC_STAGE which stage it wants, so nothing from params.yaml ever reaches a shell. Importing torch takes
seconds, and a pipeline has a dozen stages: the first one starts a process that has it imported
(`flows.launch.forkserver`), and the others are forked from there.
"""

import ctypes
import os
import signal
import sys
import time

from flows.launch import forkserver as warm


def main() -> int:
    """Runs the stage; returns its exit status."""
    stage = os.environ.get("DVC_STAGE")
    if stage is None:
        print(
            "python -m flows.launch is run by DVC: use `dvc repro`, or `dvc repro -s STAGE`",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("FMCORE_STARTED", str(time.time()))
    if sys.platform != "linux":
        return warm.run_here(stage)
    # Asks for SIGTERM when DVC dies: a stage left behind would write beside the next run.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    return warm.run(stage)


if __name__ == "__main__":
    sys.exit(main())
