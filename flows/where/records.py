"""What MLflow and Prefect have of a checkout's runs, read and never written.

A server that does not answer, or a database that cannot be read, is said in a line (`problem`), and everything
else is told without it.
"""

import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flows.local import api, tracking
from flows.local.process import redacted
from flows.registry.card import SHA, VERSION
from flows.watch.digests import OUT
from flows.watch.naming import PAGE
from flows.watch.store import EXPERIMENT, Store, clean

RUNS_PER_CALL = 200


class Records:
    """MLflow's runs and registered versions, the newest first, and Prefect's runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.problem = ""

    def run(self, run: str) -> Any:
        """The run with that id, None if there is none."""
        return next(self._runs(f"attributes.run_id = '{run}'"), None)

    def made(self, path: str, md5: str) -> list[Any]:
        """The runs whose stages made that output with that digest."""
        return list(self._runs(f"tags.`{clean(OUT + path)}` = '{md5}'"))

    def with_digest(self, digest: str) -> tuple[str, Any] | None:
        """The path of an output whose digest begins like that, and the run that made it last."""
        for run in self._runs():
            for key, value in run.data.tags.items():
                if key.startswith(OUT) and value.startswith(digest):
                    return key.removeprefix(OUT), run
        return None

    def told(self, flow_run: str) -> tuple[str, Any] | None:
        """The stage that a run of Prefect's is of, in MLflow's alphabet, or `pipeline`, and MLflow's run."""
        for run in self._runs():
            for key, value in run.data.tags.items():
                if key.startswith(PAGE) and value.endswith(f"/{flow_run}"):
                    return key.removeprefix(PAGE), run
        return None

    def pipeline_of(self, experiment: str) -> Any:
        """The newest run of a pipeline that was that DVC experiment, None if there is none."""
        return next(self._runs(f"tags.`dvc.exp` = '{experiment}' and tags.`fmcore.kind` = 'pipeline'"), None)

    def above(self, run: Any) -> Any:
        """The pipeline's run that a run is of."""
        parent = run.data.tags.get("mlflow.parentRunId")
        return self.run(parent) if parent else run

    def below(self, run: Any) -> list[Any]:
        """The models' runs of a pipeline's run."""
        return list(self._runs(f"tags.mlflow.parentRunId = '{run.info.run_id}'"))

    def version(self, name: str, number: str = "", alias: str = "") -> Any:
        """A registered version, by its number or by an alias; None if there is none."""
        model = self._model(name)
        wanted = number or str((model.aliases if model else {}).get(alias, ""))
        found = self._versions(f"name = '{name}'") if model else []
        return next((each for each in found if str(each.version) == wanted), None)

    def version_of(self, run: Any, sha256: str = "") -> Any:
        """The registered version that a model's run made, or that has these weights."""
        if run is not None and (known := run.data.tags.get(VERSION)):
            name, _, number = known.rpartition("/")
            return self.version(name, number)
        if sha256:
            return next(iter(self._versions(f"tags.`{SHA}` = '{sha256}'")), None)
        return next(iter(self._versions(f"run_id = '{run.info.run_id}'")), None) if run is not None else None

    def with_weights(self, digest: str) -> Any:
        """The registered version whose weights' SHA-256 begins like that, None if there is none."""
        return next(iter(self._versions(f"tags.`{SHA}` LIKE '{digest}%'")), None)

    def aliases(self, version: Any) -> list[str]:
        """What a version is called besides."""
        model = self._model(version.name)
        known = model.aliases if model else {}
        return sorted(alias for alias, number in known.items() if str(number) == str(version.version))

    def page(self, run: Any) -> str:
        """Where MLflow's page shows a run, empty if it is not known where that page is."""
        page = tracking.page(self.root)
        return tracking.page_of_run(page, self._experiment or "", run.info.run_id) if page else ""

    def flow_run(self, run: str) -> dict[str, Any]:
        """What the Prefect API of this checkout says of a run; empty if it knows none, or does not answer."""
        found = api.live_api(self.root)
        if found is None:
            return {}
        status, text = api.asked(found.address, f"/flow_runs/{run}", found.login, seconds=5.0)
        told = json.loads(text) if status == 200 else {}
        return told if isinstance(told, dict) else {}

    @cached_property
    def _experiment(self) -> str | None:
        if self.store.uri == tracking.address(self.root) and not (self.root / tracking.NAME).exists():
            self.problem = f"no run yet: there is no {tracking.NAME}"
            return None
        found = self._asked(lambda: self.store.client.get_experiment_by_name(EXPERIMENT), None)
        if found is None and not self.problem:
            self.problem = f"no run yet: there is no experiment {EXPERIMENT}"
        return str(found.experiment_id) if found else None

    def _runs(self, where: str = "") -> Iterator[Any]:
        token = None
        while self._experiment:
            page = self._asked(partial(self._page_of_runs, where, token), [])
            yield from page
            token = getattr(page, "token", None)
            if not token:
                return

    def _page_of_runs(self, where: str, token: str | None) -> Any:
        newest = ["attributes.start_time DESC"]
        return self.store.client.search_runs(
            [self._experiment], where, order_by=newest, max_results=RUNS_PER_CALL, page_token=token
        )

    def _versions(self, where: str) -> list[Any]:
        if not self._experiment:
            return []
        found = self._asked(lambda: list(self.store.client.search_model_versions(where)), [])
        return sorted(found, key=lambda version: -int(version.version))

    def _model(self, name: str) -> Any:
        if not self._experiment:
            return None
        found = self._asked(lambda: self.store.client.search_registered_models(f"name = '{name}'"), [])
        return next(iter(found), None)

    def _asked(self, ask: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return ask()
        except Exception as error:  # whatever a store says: the rest can be told without it
            self.problem = "cannot be asked: " + redacted(f"{type(error).__name__}: {error}").splitlines()[0][:200]
            return otherwise
