"""What Prefect or MLflow does not take: told once a pipeline, at the end of the next stage."""

import json
import os
from pathlib import Path

from flows.watch import database

READERS = {"mlflow": "MLflow", "prefect": "Prefect"}


def _file(root: Path, reader: str) -> Path:
    return root / "work" / f"{reader}-waits.json"


def note(root: Path, reader: str, problem: str | None) -> None:
    """Keeps what is wrong for the next stage to tell, or with None that nothing is."""
    path = _file(root, reader)
    if problem is None:
        path.unlink(missing_ok=True)
    elif _read(path).get("problem") != problem:
        _write(path, problem, "")


def told(root: Path, pipeline: str) -> list[str]:
    """A line for each that takes nothing: what is wrong, and what helps; each once a pipeline run."""
    lines = []
    for reader, name in READERS.items():
        path = _file(root, reader)
        known = _read(path)
        problem, said = known.get("problem"), known.get("told")
        if problem and said != pipeline:
            _write(path, problem, pipeline)
            cure = database.cure(problem) if reader == "mlflow" else ""
            lines.append(f"{name} lacks the last records, which are kept: {problem}{cure}")
    return lines


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, problem: str, told: str) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"problem": problem, "told": told}))
    part.replace(path)
