"""MLflow, reached when it is first needed: its limits, the experiment, runs by their tags."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.local.sqlite_file import ARTIFACTS
from flows.local.tracking import address, configure
from flows.watch import database

EXPERIMENT = "fmcore"
ABOUT = (
    "A run for each pipeline, below it one for each model. The step of `quality/...` is the number of network "
    "evaluations (NFE). More charts are under *Views*."
)

# The kind says that this is about training, not about language models.
TAGS = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": ABOUT}

# MLflow's limits; it refuses a whole batch for one value beyond them.
METRICS_PER_CALL, PARAMS_PER_CALL, TAGS_PER_CALL = 1000, 100, 100
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000


class Store:
    """MLflow's client, and the experiment that all runs are in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = configure(root)

    @cached_property
    def client(self) -> Any:
        """The client."""
        from mlflow import MlflowClient

        if self.uri == address(self.root):
            database.make(self.root, os.environ)
        return MlflowClient()

    @cached_property
    def experiment(self) -> str:
        """The experiment's id."""
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if not found:
            artifacts = (self.root / ARTIFACTS).as_uri() if self.uri.startswith("sqlite:") else None
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=TAGS))
        for key, value in TAGS.items():
            if key not in found.tags:  # it is of an older version
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def runs(self, *, newest: int = 0, **tags: str) -> list[Any]:
        """The runs with those tags of ours, `fmcore.` before their names; the newest so many if that is asked."""
        where = " and ".join(f"tags.`fmcore.{key}` = '{clean(value)}'" for key, value in tags.items())
        limit = {"max_results": newest} if newest else {}
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment], where, order_by=order, **limit))

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a run, as many as there are."""
        from mlflow.entities import RunTag

        every = [RunTag(key, value) for key, value in tagged(tags).items()]
        for batch in batches(every, TAGS_PER_CALL):
            self.client.log_batch(run, tags=batch)

    def log_params(self, run: str, params: Mapping[str, Any]) -> None:
        """Logs parameters. Those that a run has stay as they are, and what another stage says is a tag."""
        from mlflow.entities import Param

        texts = {clean(key)[:KEY_LENGTH]: str(value)[:PARAM_LENGTH] for key, value in params.items()}
        known = self.client.get_run(run).data.params
        fresh = [Param(key, text) for key, text in texts.items() if key not in known]
        for batch in batches(fresh, PARAMS_PER_CALL):
            self.client.log_batch(run, params=batch)
        if other := [f"{key}={text}" for key, text in texts.items() if known.get(key, text) != text]:
            self.set_tags(run, {"fmcore.params_changed": " ".join(other)})


def clean(name: str) -> str:
    """A name with MLflow's alphabet; a stage of DVC's foreach is called `reflow@r1`."""
    return re.sub(r"[^\w./: -]", "_", name)


def tagged(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow takes them."""
    return {clean(key)[:KEY_LENGTH]: value[:TAG_LENGTH] for key, value in tags.items()}


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
