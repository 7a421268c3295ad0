"""Where the time of the last pipeline run went: `python -m flows.launch.timing`.

Each stage appends one line to `work/timing.jsonl`, which is no DVC output: clocks must not change hashes.
Work is training, sampling and scoring, as their progress bars count it; the rest is orchestration: DVC,
starting processes, imports, data loading, hashing, records for Prefect and MLflow.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.layout import TIMING
from flows.local.process import pipeline_key, pipeline_started
from flows.workshop.place import root

STARTED = "FMCORE_STARTED"  # when DVC started the stage, seconds since the epoch


def record(root: Path, stage: str, worked: float) -> None:
    """Notes that this process ran `stage`, with `worked` seconds of work."""
    path = root / TIMING
    path.parent.mkdir(exist_ok=True)
    line = {
        "pipeline": pipeline_key(),
        "pipeline_started": pipeline_started(),
        "stage": stage,
        "started": float(os.environ.get(STARTED, time.time())),
        "ended": time.time(),
        "worked": worked,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(path: Path, since: float = 0.0) -> str:
    """The split of the last pipeline run, a line per stage; if it ended before `since`, says that nothing ran."""
    lines = [line for line in _lines(path) if line["ended"] >= since]
    if not lines:
        return "nothing ran: all is as it was" if since else "no stage has run here yet"
    last = [line for line in lines if line["pipeline"] == lines[-1]["pipeline"]]
    ended = time.strftime("%d %B, %H:%M", time.localtime(last[-1]["ended"]))
    rows = [] if since else [f"the last run, which ended on {ended}:"]
    wide = 2 + max(len("all, with DVC"), *(len(line["stage"]) for line in last))
    rows += [f"{'stage':<{wide}}{'seconds':>9}{'work':>9}{'rest':>9}{'peak MB':>9}"]
    for line in last:
        wall = line["ended"] - line["started"]
        times = f"{wall:>9.1f}{line['worked']:>9.1f}{wall - line['worked']:>9.1f}"
        rows.append(f"{line['stage']:<{wide}}{times}{line['peak_mb']:>9.0f}")
    wall = last[-1]["ended"] - last[0]["pipeline_started"]
    worked = sum(line["worked"] for line in last)
    rows.append(f"{'all, with DVC':<{wide}}{wall:>9.1f}{worked:>9.1f}{wall - worked:>9.1f}")
    share = 100 * (wall - worked) / wall
    rows.append(f"orchestration: {share:.1f} % of {wall:.0f} s (rest: all but training, sampling and scoring)")
    return "\n".join(rows)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            with suppress(ValueError):  # a line that a crash tore
                yield json.loads(line)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m flows.launch.timing", description=__doc__.partition("\n")[0])
    parser.add_argument("--since", type=float, default=0.0, help="seconds since the epoch: of runs after it only")
    print(table(root() / TIMING, parser.parse_args().since))
    return 0


if __name__ == "__main__":
    sys.exit(main())
