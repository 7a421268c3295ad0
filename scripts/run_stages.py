"""Runs all stages of params.yaml in one process, without DVC, MLflow or Prefect: for a machine that lacks them.

    python scripts/run_stages.py [--seconds N]

It runs in the current folder, every stage anew, and prints how long each took and the most memory a GPU held. No
stage begins after N seconds. What is unfinished goes on from its last checkpoint when it is run again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from flows.launch.runner import Bars
from flows.launch.stages import stage_at, started
from flows.params.reading import read
from flows.workshop.entry import addresses
from fmcore.flow.speed import keep_freed_memory


def main() -> int:
    """Runs the stages; returns 1 if there was no time for all."""
    parser = argparse.ArgumentParser(prog="run_stages.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no stage after that many")
    limit = parser.parse_args().seconds
    import torch

    keep_freed_memory()
    params, began, seconds = read(), time.monotonic(), dict[str, float]()
    waiting = addresses(params.model_dump(mode="json"))
    while waiting and time.monotonic() - began < limit:
        address, start = waiting.pop(0), time.monotonic()
        with Bars() as bars:
            for event in started(params, stage_at(address)):
                bars(event)
        seconds[address] = round(time.monotonic() - start, 1)
    print(json.dumps({"seconds": seconds, "all": round(time.monotonic() - began, 1), "not_begun": waiting}))
    if torch.cuda.is_available():
        print(json.dumps({"peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20)}))
    return 1 if waiting else 0


if __name__ == "__main__":
    sys.exit(main())
