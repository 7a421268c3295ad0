"""The MLflow store of this checkout, and how its client is to behave."""

import os
from pathlib import Path

from flows.local import api
from flows.local.process import redacted

NAME = "mlflow.db"
PORT = 5000  # of MLflow's page, unless `make ui` is asked for another
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # By default a call to a dead server returns after four minutes. MLflow also repeats requests that
    # timed out but may have arrived, which makes two runs of one; here, each repeat looks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


def address(root: Path) -> str:
    """The database of a checkout as MLflow's stores are named."""
    return f"sqlite:///{root / NAME}"


def page(root: Path) -> str | None:
    """Where MLflow's page shows the store of a checkout, None if that is not known."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or address(root)
    if uri.startswith(("http://", "https://")):
        return redacted(uri).rstrip("/")
    return api.mlflow_of(root) if uri == address(root) else None


def page_of_run(page: str, experiment: str, run: str) -> str:
    """Where that page shows a run."""
    return f"{page}/#/experiments/{experiment}/runs/{run}"


def configure(root: Path) -> str:
    """Sets MLflow's environment, before it is imported, and returns the address of the store.

    That is what `MLFLOW_TRACKING_URI` names, else the database of the checkout.
    """
    # In the environment, because MLflow itself looks there when it registers models.
    uri = os.environ.get("MLFLOW_TRACKING_URI") or address(root)
    os.environ["MLFLOW_TRACKING_URI"] = uri
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    return uri
