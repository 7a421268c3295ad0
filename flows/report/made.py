"""What made the page, as far as this checkout knows: the run, its stages' times, where its records are."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from flows.layout import ORIGINS, TIMING
from flows.local import tracking
from flows.report.tables import Table

PAGE = "prefect.page."  # of MLflow's tags: a stage's page in Prefect


class Made(NamedTuple):
    """What is known: texts by name, the stages' times, links by name."""

    facts: dict[str, str]
    stages: Table | None
    links: dict[str, str]


def made(root: Path, digest: str) -> Made | None:
    """What made the page of that digest, None if it was made elsewhere or before this was noted."""
    try:
        told = json.loads((root / ORIGINS / f"{digest[:32]}.json").read_text())
    except (OSError, ValueError):
        return None
    facts = {
        "made": time.strftime("%d %B %Y, %H:%M", time.localtime(told["ended"])),
        "commit": _commit(told),
        "DVC experiment": told["experiment"],
        "parameters": f"digest {told['params']}" if told["params"] else "",
        "device": told["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in told["versions"].items()),
    }
    stages = _stages(root, told["pipeline"])
    return Made({key: text for key, text in facts.items() if text}, stages, _links(root, told["pipeline"]))


def _commit(told: dict[str, Any]) -> str:
    if not told["commit"]:
        return ""
    branch = f" on {told['branch']}" if told["branch"] else ""
    edited = "" if told["edited"] in ("", "no") else told["edited"]
    return f"{told['commit'][:12]}{branch}, " + (f"edited: {edited}" if edited else "nothing edited")


def _stages(root: Path, pipeline: str) -> Table | None:
    """What ran in that pipeline, and how long it took; the rest was as it is."""
    lines = [line for line in _timings(root) if line.get("pipeline") == pipeline]
    if not lines:
        return None
    rows = []
    for line in lines:
        wall = line["ended"] - line["started"]
        rows.append([line["stage"], f"{wall:.1f}", f"{line['worked']:.1f}", f"{line['peak_mb']:.0f}"])
    whole = lines[-1]["ended"] - lines[0]["pipeline_started"]
    rows.append(["all, with DVC", f"{whole:.1f}", f"{sum(line['worked'] for line in lines):.1f}", ""])
    return Table("stages", ["stage", "seconds", "at work", "peak MB"], rows, 1)


def _timings(root: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        for line in (root / TIMING).read_text().splitlines():
            with suppress(ValueError):  # a line that a crash tore
                yield json.loads(line)


def _links(root: Path, pipeline: str) -> dict[str, str]:
    """The run of the pipeline in MLflow, and the pages of its stages in Prefect, from this checkout's database.

    It is read as a file, since importing MLflow takes seconds.
    """
    links: dict[str, str] = {}
    # Where the page is not known, it is not up: the links lead to where it is usually.
    page = tracking.page(root) or f"http://127.0.0.1:{tracking.PORT}"
    query = (
        "select runs.run_uuid, experiment_id, coalesce(model.value, '') from runs join tags using (run_uuid) "
        "left join tags as model on model.run_uuid = runs.run_uuid and model.key = 'fmcore.model' "
        "where tags.key = 'fmcore.pipeline' and tags.value = ? order by model.value"
    )
    pages = "select key, value from tags where key like ? and run_uuid = ?"
    with suppress(sqlite3.Error), closing(_opened(root / tracking.NAME)) as database:
        for run, experiment, model in database.execute(query, (pipeline,)).fetchall():
            links[f"MLflow: {model or 'pipeline'}"] = tracking.page_of_run(page, experiment, run)
            for key, url in database.execute(pages, (f"{PAGE}%", run)):
                if url.startswith(("http://", "https://")):
                    links[f"Prefect: {key.removeprefix(PAGE)}"] = url
    return links


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)
