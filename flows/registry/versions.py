"""Models become versions in MLflow's registry, and the best of them get aliases.

What is made is found again by the digest of its weights, so it is made once, however often it is told.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.registry.card import AT, SHA, card, tags_of
from flows.registry.packing import packed

BEST = "best-at-"  # of aliases: the least distance within so many evaluations


def name_of(data: str) -> str:
    """What the models of a data set are registered as.

    >>> name_of("digits"), name_of("")
    ('fmcore-digits', 'fmcore')
    """
    return f"fmcore-{data}" if data else "fmcore"


def register(client: Any, experiment: str, run: str, folder: Path, tags: Mapping[str, str]) -> Any:
    """Makes a version of a model folder, or finds the one there is.

    Main arguments:
        run: of MLflow, which the model came from.
        tags: of which `fmcore.model` is the model's name and `fmcore.data` its data.
    """
    manifest = _json(folder / "manifest.json")
    digest = manifest.get("sha256") or hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    name = name_of(tags.get("fmcore.data", ""))
    _make_name(client, name)
    versions = client.search_model_versions(f"name = '{name}'")
    known = {version.tags[SHA]: version.version for version in versions if SHA in version.tags}
    if digest in known:
        version = client.get_model_version(name, known[digest])
    else:
        about = {**tags, **tags_of(manifest, digest, known)}
        version = _made(client, experiment, run, folder, name, about)
    if not version.description:
        client.update_model_version(name, version.version, card(name, version.version, version.tags))
        # By this tag the pages of the run and of the model link to the registry.
        links = json.dumps([{"name": name, "version": version.version}])
        client.set_logged_model_tags(_logged(version), {"mlflow.modelVersions": links})
    return version


def _made(client: Any, experiment: str, run: str, folder: Path, name: str, about: Mapping[str, str]) -> Any:
    """A new version, of a logged model that is new or was begun."""
    found = client.search_logged_models([experiment], f"tags.`{SHA}` = '{about[SHA]}'")
    logged = found[0] if found else client.create_logged_model(experiment, about["fmcore.model"], run, about)
    if logged.status != "READY":
        target = packed(folder, folder.with_name(f".{folder.name}.packed"), logged.model_id)
        client.log_model_artifacts(logged.model_id, str(target))
        shutil.rmtree(target)
        client.finalize_logged_model(logged.model_id, "READY")
    source = f"models:/{logged.model_id}"
    return client.create_model_version(name, source, run, about, model_id=logged.model_id)


def rate(
    client: Any,
    data: str,
    digest: str,
    yardstick: str,
    scores: Mapping[str, tuple[float, str]],
    samples: Path,
) -> None:
    """Notes what a version scores within so many evaluations, and gives the aliases to the best.

    An alias goes to the best of all versions scored by the same yardstick as this one. So it changes hands
    for a better model only, or where models are compared by something else than before.

    Main arguments:
        scores: by the number of evaluations, the distance and how the samples were made.
        samples: a picture of some.
    """
    name = name_of(data)
    found = [
        version for version in client.search_model_versions(f"name = '{name}'") if version.tags.get(SHA) == digest
    ]
    if not found:
        return  # it was trained before there was a registry, and its folder is gone
    version = found[0]
    tags = {f"{AT}{budget}": f"{value:.6g} by {how}" for budget, (value, how) in scores.items()}
    tags["fmcore.yardstick"] = yardstick
    for key, text in tags.items():
        client.set_model_version_tag(name, version.version, key, text)
    client.update_model_version(name, version.version, card(name, version.version, {**version.tags, **tags}))
    client.log_model_artifact(_logged(version), str(samples))
    for budget in scores:
        _choose(client, name, yardstick, budget)


def _choose(client: Any, name: str, yardstick: str, budget: str) -> None:
    """Gives the alias for a number of evaluations to the best version, the newest of equals."""
    rated = [
        (float(version.tags[f"{AT}{budget}"].partition(" ")[0]), -int(version.version), version)
        for version in client.search_model_versions(f"name = '{name}'")
        if version.tags.get("fmcore.yardstick") == yardstick and f"{AT}{budget}" in version.tags
    ]
    best = min(rated, key=lambda each: each[:2])[2].version
    alias = f"{BEST}{budget}"
    if str(client.get_registered_model(name).aliases.get(alias)) != str(best):
        client.set_registered_model_alias(name, alias, best)


def _logged(version: Any) -> str:
    """The logged model that a version is of."""
    return str(version.source).removeprefix("models:/")


def _make_name(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
