"""The views that MLflow's page opens on: curves of quality against NFE, drawn without a click.

MLflow keeps a view as a tag of the experiment: a name, and the state of its page, compressed. A link names it. The
page leaves out of the state which runs are hidden or expanded, so a view chooses its runs by their tags. Where it
sorts by time it nests models below pipelines, folded and not drawn, so a view sorts by a tag of ours.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from flows.watch import pictures
from flows.watch.journal import Journal
from flows.watch.naming import HEADLINE
from flows.watch.store import Store, clean

TAG = "mlflow.sharedViewState."
LATEST = "latest"  # the view of the latest pipeline, of whatever data
# Distances, which are never negative and span decades: these are drawn on two logarithmic axes.
DISTANCES = ("fd_", "fid_", "sliced_wasserstein", "energy_distance")
RECENT = 20  # pipelines of which the latest is looked for
SAMPLES = "samples"
SECTIONS = ("quality", SAMPLES, "training", "flow", "solvers", "couplings", "cost", "bends")
UNFOLDED = SECTIONS[:4]
LAYOUTS = {"quality": {"columns": 1, "cardHeight": 440}, SAMPLES: {"columns": 1, "cardHeight": 520}}


def chart(metric: str) -> dict[str, Any]:
    """A line chart of a metric, its axes as the metric wants them."""
    section, _, name = metric.partition("/")
    distance = section == "quality" and name.startswith(DISTANCES)
    return {
        **_card("LINE", section, metric),
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "log" if section == "quality" else "linear",
        "scaleType": "log" if distance or metric == "training/loss" else "linear",
        "displayPoints": section == "quality",
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "useGlobalXaxisKey": False,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
    }


def pictured(keys: Sequence[str]) -> list[dict[str, Any]]:
    """A table of pictures, a column for each run, without the charts of one row that the page would add."""
    table = {**_card("IMAGE", SAMPLES, SAMPLES), "imageKeys": list(keys), "step": 0, "showRunParams": False}
    alone = [{**_card("IMAGE", SAMPLES, key), "imageKeys": [key], "step": 0, "deleted": True} for key in keys]
    return [table, *alone] if len(keys) > 1 else []


def _card(kind: str, section: str, name: str) -> dict[str, Any]:
    about = {"uuid": _id(f"{kind} {name}"), "type": kind, "metricSectionId": _id(section), "deleted": False}
    return about | {"isGenerated": False, "runsCountToCompare": 20}


def _id(name: str) -> str:
    return uuid5(NAMESPACE_URL, name).hex


def state(
    search: str, metrics: Iterable[str], columns: Sequence[str], samples: Sequence[str] = ()
) -> dict[str, Any]:
    """The state of MLflow's page: the runs that `search` finds, charts of their metrics, columns of their table.

    What is not drawn explicitly, the page adds by itself, a section for each.
    """
    drawn = [key for key in metrics if key.startswith(("quality/", "training/loss"))]
    first = tuple(f"quality/{name}" for name in DISTANCES[:3])
    ordered = sorted(drawn, key=lambda key: (not key.startswith(first), key))
    sections = [*SECTIONS, "Model metrics", "System metrics"]
    return {
        "searchFilter": search,
        "orderByKey": "tags.`fmcore.order`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(columns),
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "runListHidden": False,
        "viewMaximized": False,
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": "",
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "isAccordionReordered": True,
        "compareRunSections": [_section(name) for name in sections],
        "compareRunCharts": [*map(chart, ordered), *pictured(samples)],
    }


def _section(name: str) -> dict[str, Any]:
    section = {"uuid": _id(name), "name": name, "display": name in UNFOLDED, "isReordered": True, "deleted": False}
    section |= {"isGenerated": False}
    return section | LAYOUTS.get(name, {})


def encoded(name: str, state: dict[str, Any], created: int) -> str:
    """A view as MLflow's tags hold it; `created` in milliseconds sorts the menu of views, the newest first."""
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)).decode()
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": f"deflate;{packed}"})


class Views:
    """Keeps the views of an experiment up to date."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._seen: set[tuple[str, str, str]] = set()
        self._set: dict[str, str] = {}

    def update(self, journal: Journal) -> None:
        """Shows what is new: another pipeline, another of its models, or metrics that none had before."""
        pipeline, model = journal.start["pipeline"], journal.start.get("model", "")
        names = {
            (pipeline, record.of.get("of") or model, key)
            for record in journal.fresh
            for key in (record.of["values"] if record.kind == "metrics" else [record.of.get("beside", "")])
        }
        if names - self._seen:
            self._refresh(journal.start["tags"].get("fmcore.data", ""))
            self._seen |= names

    def _refresh(self, data: str) -> None:
        latest = self._latest(data=data) if data else None
        if latest is None:
            return
        pipeline, runs = latest
        key, created = pipeline.data.tags["fmcore.pipeline"], pipeline.info.start_time
        metrics = sorted({key for run in runs for key in run.data.metrics})
        quality = [f"metrics.`{key}`" for key in metrics if key.startswith("quality/")]
        columns = [*quality, "metrics.`flow/straightness`", "tags.`fmcore.difference`", "attributes.Duration"]
        samples = self._samples(runs)
        of_one = state(_where(kind="model", pipeline=key), metrics, columns, samples)
        views = {data: (f"{data}: latest pipeline", of_one), "pipelines": ("all pipelines", self._pipelines(data))}
        overall = self._latest()
        if overall and overall[0].data.tags["fmcore.pipeline"] == key:
            views[LATEST] = (f"latest pipeline ({data})", of_one)
        for model in {run.data.tags["fmcore.model"] for run in runs}:
            of_all = state(_where(kind="model", data=data, model=model), metrics, columns, samples)
            views[f"{data}.{model}"] = (f"{data}: {model} of all pipelines", of_all)
        for name, (title, view) in views.items():
            text = encoded(title, view, created)
            if self._set.get(name) != text:
                self.store.client.set_experiment_tag(self.store.experiment, clean(f"{TAG}{name}"), text)
                self._set[name] = text

    def _latest(self, **tags: str) -> tuple[Any, list[Any]] | None:
        """The pipeline that started last of those with scores, and its models' runs; a stopped one has none.

        Before there is any, that which started last and has runs of models; None if none of the last has one.
        """
        unscored = None
        for pipeline in self.store.runs(kind="pipeline", newest=RECENT, **tags):
            if runs := self.store.runs(kind="model", pipeline=pipeline.data.tags["fmcore.pipeline"]):
                if any(key.startswith("quality/") for run in runs for key in run.data.metrics):
                    return pipeline, runs
                unscored = unscored or (pipeline, runs)
        return unscored

    def _pipelines(self, data: str) -> dict[str, Any]:
        """The view of all pipelines, a table of the numbers they are compared by."""
        told = [f"metrics.`{key}`" for key in self._headlines(data)]
        told += ["tags.`fmcore.verdict`", "tags.`fmcore.difference`"]
        return state(_where(kind="pipeline"), [], told)

    def _samples(self, runs: Sequence[Any]) -> list[str]:
        """The keys of the samples that some of the runs have, those of the fewest evaluations first."""
        client = self.store.client
        files = [file.path for run in runs for file in client.list_artifacts(run.info.run_id, "images")]
        found = pictures.keys_of(path.rpartition("/")[2] for path in files)
        ours = [key for key in found if re.fullmatch(rf"{SAMPLES}/\d+ \D*", key)]
        return sorted(ours, key=lambda key: int(key.partition("/")[2].split()[0]))

    def _headlines(self, data: str) -> list[str]:
        """The numbers that the latest pipelines are compared by."""
        runs = self.store.runs(kind="pipeline", data=data, newest=5)
        keys = {key for run in runs for key in run.data.metrics if HEADLINE.fullmatch(key)}
        order = ["best of all", *reversed(runs[0].data.tags.get("fmcore.models", "").split())] if runs else []
        return sorted(keys, key=lambda key: (int(key[3:].partition("/")[0]), _place(key.partition("/")[2], order)))


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _where(**tags: str) -> str:
    return " and ".join(f"tags.`fmcore.{key}` = '{clean(value)}'" for key, value in tags.items())
