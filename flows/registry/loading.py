"""`flows.load`: a model by its name in the registry."""

import os
import re
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.local import tracking
from flows.local.sqlite_file import settle
from flows.registry import MODEL

if TYPE_CHECKING:
    from fmcore.model import Model

WANTED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def load(model: str, device: str = "cpu", *, ema: float | None = None) -> "Model":
    """Loads a registered model: `models:/fmcore-digits@best-at-1` by alias, `models:/fmcore-digits/3` by version.

    Only its weights and JSON files are read; no program that lies in the registry runs. The registry is that of
    the folder this runs in, or what `MLFLOW_TRACKING_URI` names.

    Main arguments:
        ema: half-life, in images, of the averaged weights; None for the model's first.

    Raises:
        ValueError: if there is no such model; `fmcore.disk.files.ArtifactError`, which is one, if it is damaged.
    """
    import fmcore

    wanted = WANTED.fullmatch(model)
    if wanted is None:
        raise ValueError(f"model: expected models:/NAME@ALIAS or models:/NAME/VERSION, got {model!r}")
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    if tracking.configure(root) == tracking.address(root) and (root / tracking.NAME).exists():
        with suppress(sqlite3.Error):  # which MLflow tells in its own way
            settle(root / tracking.NAME)
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    version = _version(MlflowClient(), model, **wanted.groupdict())
    folder = download_artifacts(f"models:/{version.name}/{version.version}/artifacts/{MODEL}")
    return fmcore.load(folder, device, ema=ema)


def _version(client: Any, model: str, name: str, alias: str | None, version: str | None) -> Any:
    """The version of a model that is meant; a ValueError says what there is."""
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    try:
        found = client.get_registered_model(name)
    except MlflowException:
        names = ", ".join(each.name for each in client.search_registered_models()) or "none"
        raise ValueError(f"{model}: the registry has no {name}, it has {names}") from None
    versions = len(client.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(sorted(found.aliases)) or "none"
    raise ValueError(f"{model}: {name} has {versions} versions and the aliases {aliases}")
