"""What the page of a run says above its stages, in Markdown: the answer, the figure, each stage, the way on."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.pipeline.experiments import Experiment
from flows.pipeline.work import Outcome

REPORTS = Path("reports")
FIGURE, METRICS = REPORTS / "curves.png", REPORTS / "metrics.json"
INLINE_BYTES = 300_000  # base64 adds a third, and the page keeps all of it in memory
WORDS = {"done": "done", "cached": "cached", "failed": "**failed**", "skipped": "skipped", "stopped": "stopped"}


class Page:
    """The text of a run's page, which grows with the run."""

    def __init__(self, root: Path, experiment: Experiment | None, mlflow: str | None) -> None:
        self.root, self.experiment, self.mlflow = root, experiment, mlflow
        self.outcomes: dict[str, Outcome] = {}
        self.links: dict[str, str] = {}
        self.working = ""
        self.verdict: list[str] = []
        self.commit: str | None = None
        self.problem = ""  # of the server that is to show it

    def hear(self, line: str) -> None:
        """Takes the verdict from what the report says, which is in no file of its own."""
        if line.startswith("report: "):
            self.verdict.append(line.removeprefix("report: "))

    def text(self) -> str:
        """The page as it is now."""
        parts = [*self._answer(), self._stages(), *self._ways()]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _answer(self) -> list[str]:
        """Verdict, figure and numbers, once the report of this run is there."""
        report = self.outcomes.get("report")
        if report is None or report.end not in ("done", "cached"):
            return []
        first, rest = self.verdict[:1], self.verdict[1:]
        return [
            *(f"**{line}**" for line in first),
            *rest,
            _figure(self.root / FIGURE),
            _numbers(self.root / METRICS),
        ]

    def _stages(self) -> str:
        rows = [["stage", "", "seconds", "why"], ["---", "---", "---:", "---"]]
        for stage, (_, end, text, seconds, _) in self.outcomes.items():
            name = f"[{stage}]({self.links[stage]})" if stage in self.links else stage
            rows.append([name, WORDS[end], f"{seconds:.0f}" if seconds else "", _cell(text)])
        if self.working:
            rows.append([self.working, "running", "", ""])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def _ways(self) -> list[str]:
        lines = [f"[Curves and comparisons in MLflow]({self.mlflow})"] if self.mlflow else []
        if self.commit and self.experiment:
            name = self.experiment.name
            lines.append(
                f"Kept as DVC experiment `{name}`. Compare: `dvc exp show`. Take it into the checkout: "
                f"`dvc exp apply {name}`, or into a branch: `dvc exp branch {name} BRANCH`. Forget it: "
                f"`dvc exp remove {name}`."
            )
        elif self.experiment:
            lines.append(f"DVC experiment `{self.experiment.name}`, on commit `{self.experiment.commit[:8]}`.")
        return lines


def _figure(path: Path) -> str:
    try:
        if path.stat().st_size > INLINE_BYTES:
            return ""
        data = base64.b64encode(path.read_bytes()).decode()
        return f"![distance to the data against NFE](data:image/png;base64,{data})"
    except OSError:
        return ""


def _numbers(path: Path) -> str:
    """The tables of the metrics file: a row for each model, a column for each number."""
    try:
        found = json.loads(path.read_text())
        tables = {key: value for key, value in found.items() if _is_table(value)}
    except (OSError, ValueError, AttributeError):
        return ""
    return "\n\n".join(_table(str(key), value) for key, value in tables.items())


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(row, Mapping) for row in value.values())


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [[title, *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(_number(row.get(column)) for column in columns)] for name, row in rows.items()]
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Rows as a table of Markdown."""
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in lines)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
