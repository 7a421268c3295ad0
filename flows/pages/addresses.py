"""Where the pages are: those of this checkout, and a team's servers that the environment names."""

import os
import sys
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from flows.local import api, private
from flows.local.process import redacted
from flows.pages.report import PLACE

TRACKING = "MLFLOW_TRACKING_URI"


class Team(NamedTuple):
    """The servers that the environment names on other machines, None where this checkout has its own.

    The stages tell those of their runs (`flows.local.api`, `flows.local.tracking`), so an own one would be empty.
    """

    prefect: str | None = None
    mlflow: str | None = None

    @property
    def lines(self) -> list[str]:
        """What is said of them."""
        found = []
        if self.prefect:
            page = self.prefect.rstrip("/").removesuffix("/api")
            found.append(f"runs:        {page} ({api.URL}; no Prefect server and no worker are started here)")
        if self.mlflow:
            found.append(f"comparisons: {self.mlflow} ({TRACKING}; no MLflow server is started here)")
        return found


def team() -> Team:
    """The servers that `PREFECT_API_URL` and `MLFLOW_TRACKING_URI` name, if they are on other machines."""
    return Team(*(_elsewhere(os.environ.get(name, "")) for name in (api.URL, TRACKING)))


def _elsewhere(address: str) -> str | None:
    """A server's address without its login, None for one on this machine, for a database and for nothing."""
    try:
        web = urlsplit(address).scheme in ("http", "https")
    except ValueError:
        return None
    return redacted(address) if web and not private.is_loopback(address) else None


def say_where(prefect: str, mlflow: str, login: str | None, logs: Path, beside: Team) -> None:
    """Says where the pages of this checkout are, each empty if there is none, and how to enter."""
    for line in [*_own(prefect, mlflow), *beside.lines]:
        print(line)
    if login is None:
        print("no login: whoever is on this machine can run commands as you")
    else:
        # A file that this is sent to may be open to others; a terminal is not.
        shown = login if sys.stdout.isatty() else "USER:PASSWORD"
        print(f"login:       {shown} (in {private.login_file()}); each page asks once per browser")
        print("             (Prefect for the whole text, MLflow for what is before and after the colon)")
    print(f"logs are in {logs}/; Ctrl-C stops everything", flush=True)


def _own(prefect: str, mlflow: str) -> list[str]:
    lines = [f"runs:        {prefect} (start one: {prefect}/deployments)"] if prefect else []
    if mlflow:
        lines.append(f"comparisons: {mlflow} (opens on the charts of the latest pipeline)")
        lines.append(f"report:      {mlflow}{PLACE}/")
    return lines


def up_already(root: Path, lock: IO[str]) -> str:
    """What a second start from a checkout says: which process has the pages, and where they are."""
    lock.seek(0)
    pid = lock.read(20).strip()
    how = f", in process {pid} (to end them: kill {pid})" if pid else ""
    lines = [f"the pages of this checkout are up already{how}"]
    if record := api.running(root):
        lines += _own(record.address.removesuffix("/api"), record.mlflow)
    else:
        lines.append("it is just starting; its terminal will say where they are")
    return "\n".join(lines)
