"""The load of the machine while long stages run: MLflow's own system metrics, from the postman's side.

The postman runs on the machine of the stage, so the stage itself need not import MLflow for this.
"""

import time
from typing import Any

from flows.watch.journal import Journal
from flows.watch.runs import Runs

AFTER_SECONDS = 60.0  # shorter stages are not worth a chart
SAMPLE_SECONDS, SAMPLES = 10.0, 3  # how often it looks, and how many looks are averaged


class Monitors:
    """One of MLflow's monitors, a thread, for each stage that has run for long."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._running: dict[str, Any] = {}

    def watch(self, journal: Journal) -> None:
        """Starts the monitor of a stage that has become long, and stops that of one that has ended."""
        name, started = journal.folder.name, journal.start["time"]
        if not journal.alive or journal.end is not None:
            if monitor := self._running.pop(name, None):
                monitor.finish()
        elif name not in self._running and time.time() - started > AFTER_SECONDS:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._running[name] = SystemMetricsMonitor(
                self.runs.of(journal).run, SAMPLE_SECONDS, SAMPLES, resume_logging=True
            )
            self._running[name].start()
