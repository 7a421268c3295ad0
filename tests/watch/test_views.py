"""The views of MLflow's page, as its own script would read them."""

import base64
import json
import zlib

import pytest

from flows.events import trained
from flows.local import process
from flows.watch import views
from mlflow_records import drain, make_root, play_pipeline, play_stage, query


@pytest.fixture
def root(tmp_path, monkeypatch):
    return make_root(tmp_path, monkeypatch)


def decoded(text):
    envelope = json.loads(text)
    kind, _, packed = envelope["state"].partition(";")
    assert kind == "deflate"
    return envelope["name"], json.loads(zlib.decompress(base64.b64decode(packed)))


def kept(root):
    rows = query(root, f"select key, value from experiment_tags where key like '{views.TAG}%'")
    return {key.removeprefix(views.TAG): decoded(value) for key, value in rows}


def test_there_is_a_view_of_the_latest_pipeline_of_each_data_and_of_each_model(root):
    play_pipeline(root, 1_000_000_000)
    play_pipeline(root, 1_000_003_600, data="moons")
    drain(root)
    found = kept(root)
    models = [f"{data}.{model}" for data in ("digits", "moons") for model in ("base", "r1", "r2", "student")]
    assert set(found) == {"latest", "digits", "moons", "pipelines", *models}
    assert found["latest"] == ("latest pipeline (moons)", found["moons"][1])
    name, state = found["digits"]
    assert name == "digits: latest pipeline"
    assert (
        state["searchFilter"]
        == "tags.`fmcore.kind` = 'model' and tags.`fmcore.pipeline` = '4194304-1000000000.00'"
    )
    assert found["moons.r2"][1]["searchFilter"].endswith("tags.`fmcore.model` = 'r2'")
    assert found["pipelines"][1]["selectedColumns"][0] == "metrics.`at 1/best of all`"

    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    charts = {
        sections[chart["metricSectionId"]]: chart for chart in state["compareRunCharts"] if not chart["deleted"]
    }
    quality = charts["quality"]
    assert (quality["metricKey"], quality["xAxisScaleType"], quality["scaleType"]) == (
        "quality/fd_cnn64",
        "log",
        "log",
    )
    assert charts["samples"]["imageKeys"] == ["samples/1 NFE", "samples/4 NFE"]
    assert all(len(value) < 20_000 for _, value in query(root, "select key, value from experiment_tags"))


def test_an_older_pipeline_that_arrives_late_is_not_the_latest(root):
    play_pipeline(root, 1_000_003_600)
    drain(root)
    before = kept(root)["latest"]
    play_pipeline(root, 1_000_000_000, run=())
    drain(root)
    assert kept(root)["latest"] == before


def test_a_pipeline_without_scores_is_shown_only_until_there_are_some(root, monkeypatch):
    def training(started):
        monkeypatch.setenv(process.PIPELINE, f"4194304-{started:.2f}")
        play_stage(root, "base", "base", [trained(64, 0.5, 1.0, 1e-3)], data="digits")
        drain(root)
        return kept(root)["latest"][1]["searchFilter"]

    assert "4194304-1000000000.00" in training(1_000_000_000)
    play_pipeline(root, 1_000_003_600)
    assert "4194304-1000003600.00" in training(1_000_007_200), "it may be stopped, and then nothing would be drawn"


@pytest.mark.parametrize(
    ("metric", "scales"),
    [
        ("quality/fd_cnn64", ("log", "log")),
        ("quality/sliced_wasserstein", ("log", "log")),
        ("quality/kid", ("log", "linear")),  # may be negative
        ("quality/precision", ("log", "linear")),
        ("training/loss", ("linear", "log")),
    ],
)
def test_axes_are_logarithmic_where_numbers_span_decades_and_are_positive(metric, scales):
    chart = views.chart(metric)
    assert (chart["xAxisScaleType"], chart["scaleType"]) == scales
