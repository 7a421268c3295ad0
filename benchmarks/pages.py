"""What the pages cost: `python benchmarks/pages.py` in a checkout whose pipeline has run, on an idle machine.

Seconds until both are healthy; a run from Prefect's page in which all is cached, beside `dvc repro`; from the
click to the start of a stage's process; what the servers and the worker hold and use while nothing happens. It
runs `base` once more, as an experiment with another seed, and stops it as soon as it has begun.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from benchmarks import machine
from flows.pages.servers import DEPLOYMENT
from servers import client_of, running_pages, wait_until

IDLE_SECONDS = 60.0
Row = tuple[str, str]


def seconds(since: float) -> str:
    """How long ago that was."""
    return f"{time.monotonic() - since:.1f} s"


def cached(client: Any, deployment: Any, checkout: Path, times: int) -> list[Row]:
    """A run in which nothing is to be done, by DVC alone and from the page, in turn."""
    alone, page = [], []
    for _ in range(times):
        start = time.monotonic()
        subprocess.run(["dvc", "repro"], cwd=checkout, check=True, capture_output=True)
        alone.append(time.monotonic() - start)
        start = time.monotonic()
        run = client.create_flow_run_from_deployment(deployment.id).id
        wait_until(lambda run=run: client.read_flow_run(run).state.is_final(), 600)
        page.append(time.monotonic() - start)
    return [
        ("`dvc repro`, all cached", f"{median(alone):.1f} s"),
        ("the same from Prefect's page", f"{median(page):.1f} s"),
    ]


def click(client: Any, deployment: Any) -> list[Row]:
    """From the click until the process of a stage is there, and from the cancellation until all has ended."""
    start, before = time.monotonic(), time.time()
    given = {"seed": 1000 + int(before) % 1_000_000, "stages": ["base"]}  # one that nothing is cached of
    run = client.create_flow_run_from_deployment(deployment.id, parameters=given).id
    wait_until(lambda: trainings(before), 600)
    rows = [("from the click to the process of `base`, in an experiment", seconds(start))]
    time.sleep(20)
    start = time.monotonic()
    client.request("POST", f"/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}})
    wait_until(lambda: not trainings(before), 120)
    rows.append(("from *Cancel* until its process has ended", seconds(start)))
    wait_until(lambda: ended(client, run), 120)
    return [*rows, ("and until every state on the page is final", seconds(start))]


def ended(client: Any, run: Any) -> bool:
    """Whether a run, its tasks and their own runs are over."""
    tasks = [task for task in client.read_task_runs() if task.flow_run_id == run]
    above = {task.id for task in tasks}
    below = [each for each in client.read_flow_runs() if each.parent_task_run_id in above]
    return all(each.state.is_final() for each in (client.read_flow_run(run), *tasks, *below))


def trainings(since: float) -> list[psutil.Process]:
    """The processes of the stage `base` that began after a time."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.create_time() > since and process.environ().get("DVC_STAGE") == "base":
                found.append(process)
    return found


def idle(tops: list[psutil.Process]) -> list[Row]:
    """What each process and its children hold and use while nothing happens."""
    families = {name_of(top): [top, *top.children(recursive=True)] for top in tops}
    before = {name: used(family) for name, family in families.items()}
    time.sleep(IDLE_SECONDS)
    rows = []
    for name, family in families.items():
        share = 100 * (used(family) - before[name]) / IDLE_SECONDS
        held = sum(each.memory_full_info().pss for each in family if each.is_running()) / 1e6
        rows.append((f"idle: {name}", f"{held:.0f} MB, {share:.1f} % of a core"))
    return rows


def used(family: list[psutil.Process]) -> float:
    """CPU-seconds so far."""
    return sum(sum(each.cpu_times()[:2]) for each in family if each.is_running())


def name_of(process: psutil.Process) -> str:
    """What a child of `flows.pages` is called."""
    words = " ".join(process.cmdline())
    kinds = {"flows.pages.gate": "Prefect's server", "mlflow": "MLflow's server", "worker": "Prefect's worker"}
    return next((name for mark, name in kinds.items() if mark in words), words[:40])


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args, checkout = parser.parse_args(), Path.cwd()
    os.environ.pop("PREFECT_API_URL", None)
    with running_pages(checkout) as pages:
        rows = [("until both pages are healthy", f"{pages.healthy:.1f} s")]
        with client_of(f"{pages.prefect}/api") as client:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
            rows += cached(client, deployment, checkout, args.times) + click(client, deployment)
        rows += idle(psutil.Process(pages.process.pid).children())
    text = "\n".join(
        ["| | |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows), "", machine.kind()]
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
