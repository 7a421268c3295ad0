"""The report says what the tables say."""

import doctest
import json
import re
from itertools import product

import pandas as pd
import pytest
from ruamel.yaml import YAML

from flows import layout
from flows.events import ONE_A_MODEL, Metrics, Rated, Tag
from flows.params import preset
from flows.params.reading import validate
from flows.report import tables, words
from flows.report.results import OF_FLOWS, training_passes
from flows.stages.report import report
from flows.workshop.entry import Stage
from fmcore.disk.files import write_json
from report_inputs import (
    COLUMNS,
    STRAIGHTNESS,
    build,
    groups_of_page,
    made_once,
    make,
    params_of,
    rows_of_page,
    verdict_of_page,
)
from repository import ROOT


@pytest.fixture(scope="module", params=["images", "points"])
def made(request, tmp_path_factory):
    return made_once(request.param, tmp_path_factory)


def close(text, value, std=None):
    """Whether a cell says this number, to the digits it shows."""
    parts = text.replace("±", " ").split()
    digits = len(parts[0].partition(".")[2])
    assert float(parts[0]) == pytest.approx(value, abs=0.51 * 10**-digits), text
    if std is not None:
        assert float(parts[1]) == pytest.approx(std, rel=0.06), text


def test_every_number_of_the_tables_is_in_scores(made):
    scores = pd.read_csv(made.reports / "scores.csv", keep_default_na=False, dtype={"grid": str})
    tables_ = rows_of_page(made.page)
    assert set(tables_) == {"best", "costs", "scores", "metrics", "flows", "pairs"}
    headline = "sliced_wasserstein" if made.params.is_points else "fd_cnn64"
    found = scores[scores.metric == headline]
    _, head, *rows = tables_["scores"]
    ways = list(zip(groups_of_page(made.page)[1:], [int(name.split()[0]) for name in head[1:]], strict=True))
    count = 0
    for model, *cells in rows:
        for (solver, nfe), cell in zip(ways, cells, strict=True):
            run = found[(found.model == model) & (found.solver == solver) & (found.nfe == nfe)]
            assert len(run) == bool(cell)
            if cell:
                close(cell, run.value.iloc[0], run["std"].iloc[0])
                count += 1
    assert count == found.model.isin(made.params.models).sum()
    head, *rows = tables_["metrics"]
    metrics = [name.replace(" ", "_") for name in head[3:]]
    assert metrics == (["energy_distance"] if made.params.is_points else ["kid", "precision", "recall"])
    for (model, solver, nfe, *cells), metric in product(rows, metrics):
        run = scores[(scores.model == model) & (scores.solver == solver) & (scores.nfe == int(nfe))]
        value = run[run.metric == metric]
        close(cells[metrics.index(metric)], value.value.iloc[0], value["std"].iloc[0])
    head, *rows = tables_["flows"]
    assert [row[0] for row in rows] == made.params.models
    for model, learnt, *cells in rows:
        assert (learnt == "") == (model == "base")
        for name, cell in zip(head[2:], cells, strict=True):
            key = next(key for key, text in tables.MEASURES.items() if text == name)
            run = scores[(scores.model == model) & (scores.metric == key)]
            assert len(run) == bool(cell)
            if cell:
                close(cell, run.value.iloc[0], run["std"].iloc[0])


def test_pairs_say_what_was_found_and_what_was_expected(made):
    head, *rows = rows_of_page(made.page)["pairs"]
    assert head == ["couplings", "r1", "r2", "expected"]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["mean of x0"] == ["0.0003 (+0.5 σ)", "0.0003 (+0.5 σ)", "0"]
    assert by_name["mean fourth power of x0"] == ["3.02 (+1.1 σ)", "3.02 (+7.4 σ)", "3"]
    assert made.page.count('class="bad"') == 1  # the one that is no noise
    assert by_name["transport cost, mean"][:2] == ["1.192", "1.188"]
    assert by_name["straightness of the pairs' paths, mean"][0] == "0.11"
    assert "urvature" not in re.sub(r'couplings-curvature|data:image[^"]*|<pre>.*?</pre>', "", made.page)
    assert "rarest class, 1 is its fair share" not in by_name  # nothing was conditional


def test_best_is_the_lowest_within_each_budget(made):
    curves = pd.read_csv(made.reports / "curves.csv")
    head, *rows = rows_of_page(made.page)["best"]
    columns = ["NFE at most", "take", "how", "at NFE", "distance", "as good"]
    assert head == columns[: len(head)]
    assert any(row[5:] != [""] for row in rows)  # a column of nothing would be left out
    rows = [row + [""] * (6 - len(row)) for row in rows]
    assert [int(row[0]) for row in rows] == sorted(curves.nfe.unique())
    for budget, model, how, nfe, distance, as_good in rows:
        within = curves[curves.nfe <= int(budget)]
        best = within.loc[within.value.idxmin()]
        assert (model, how, int(nfe)) == (best.model, best.solver, best.nfe)
        close(distance, best.value, best["std"])
        # On common noise errors of the builder's differences are differences of errors.
        near = within[within.value - best.value <= 2 * abs(within["std"] - best["std"])]
        assert as_good == ", ".join(name for name in near.model.unique() if name != model)
    said = verdict_of_page(made.page)
    start = (
        "Whether another reflow round after r2 pays cannot " if made.params.is_points else "Another reflow round "
    )
    assert said[0].startswith(start)
    assert [line.split(",")[0] for line in said[1:]] == ["r1", "r2"]


def test_csv_files(made):
    curves = pd.read_csv(made.reports / "curves.csv")
    assert list(curves.columns) == ["model", "solver", "grid", "nfe", "metric", "value", "std", "low", "high"]
    assert list(curves.model.unique()) == made.params.models
    assert ((curves.low < curves.value) & (curves.value < curves.high) & (curves.low > 0)).all()
    pareto = pd.read_csv(made.reports / "pareto.csv")
    assert list(pareto.columns) == ["model", "nfe", "training_passes", "gflops_per_sample", "value", "std"]
    assert not pareto.duplicated(["model", "nfe"]).any()
    for row in pareto.itertuples():
        runs = curves[(curves.model == row.model) & (curves.nfe == row.nfe)]
        assert row.value == runs.value.min()
        assert row.gflops_per_sample == pytest.approx(row.nfe * 2.3e-3)
        assert row.training_passes == training_passes(made.params)[row.model]
    bends = pd.read_csv(made.reports / "bends.csv")
    assert list(bends.columns) == ["model", "t", "width", "value", "std"]
    assert list(bends.model.unique()) == made.params.models[:-1]
    assert (bends.groupby("model").width.sum() - 1).abs().max() < 1e-9
    assert list(pd.read_csv(made.reports / "training.csv").model.unique()) == made.params.models
    scores = pd.read_csv(made.reports / "scores.csv")
    assert list(scores.columns) == list(COLUMNS)
    assert list(scores.model.unique()) == [*made.params.models, "couplings-r1", "couplings-r2"]


def test_mlflow_gets_the_pareto_figures(made):
    """Its charts have the step for an axis, so what a model or a sample costs is the step."""
    pareto = pd.read_csv(made.reports / "pareto.csv")
    logged = [event for event in made.events if isinstance(event, Metrics)]
    by_model = {
        (e.step, *e.values.items()) for e in logged if next(iter(e.values)).startswith("pareto/by_training")
    }
    expected = {
        (row.training_passes, (f"pareto/by_training_passes.nfe_{row.nfe:03d}", row.value))
        for row in pareto.itertuples()
    }
    assert by_model == expected
    by_sample = [e.step for e in logged if next(iter(e.values)).startswith("pareto/by_kflop.")]
    assert by_sample == pytest.approx((1e6 * pareto.gflops_per_sample).tolist(), abs=0.51)


def test_the_report_and_the_events_agree_on_what_a_model_has_one_of():
    assert set(OF_FLOWS) == ONE_A_MODEL


def test_the_report_tells_each_models_scores_again(made):
    """A pipeline shows all of its models, also those that DVC had no reason to score again."""
    scores = pd.read_csv(made.reports / "scores.csv")
    for model in made.params.models:
        of_model = [event for event in made.events if isinstance(event, Metrics) and event.of == model]
        told = {(e.step, *e.values.items()) for e in of_model if next(iter(e.values)).startswith("quality/")}
        rows = scores[(scores.model == model) & (scores.solver == "euler") & ~scores.metric.isin(ONE_A_MODEL)]
        rows = rows[rows.grid == rows.grid.iloc[0]]
        assert told == {(row.nfe, (f"quality/{row.metric}", row.value)) for row in rows.itertuples()}
        curve = pd.read_csv(made.reports / "training.csv").query("model == @model")
        assert [e.step for e in of_model if "training/loss" in e.values] == curve.images.tolist()


def test_what_models_are_chosen_by(made):
    """Within a budget counts the best of all ways of sampling that it allows."""
    rated = {event.name: event for event in made.events if isinstance(event, Rated)}
    curves = pd.read_csv(made.reports / "curves.csv")
    for model, event in rated.items():
        for budget, (value, how) in event.scores.items():
            within = curves[(curves.model == model) & (curves.nfe <= budget)]
            assert value == pytest.approx(within.value.min(), rel=1e-12)
            assert how.endswith(f" at {within.loc[within.value.idxmin()].nfe}")
    assert len({event.yardstick for event in rated.values()}) <= 1


def test_metrics(made):
    metrics = json.loads((made.reports / "metrics.json").read_text())
    headline = "sliced_wasserstein" if made.params.is_points else "fd_cnn64"
    assert set(metrics[headline]) == set(made.params.models)
    assert metrics[headline]["student"] == {"nfe_001": 0.89}
    assert metrics["straightness"] == STRAIGHTNESS
    assert metrics["ceiling"] == 0.42
    assert set(metrics) <= {headline, "straightness", "ceiling", "floor"}
    assert all(len(by_nfe) <= 2 for by_nfe in metrics[headline].values())
    if made.params.is_points:
        # 2,000 fresh points: not 0, and far below a model that is off by a tenth of the board's width.
        assert 0.01 < metrics["floor"] < 0.2
    else:
        assert metrics["floor"] == pytest.approx(63 * (1 / 10_000 + 1 / 1797), rel=1e-5)


def passes(student, **base):
    raw = json.loads(json.dumps(preset.overlaid("digits")))
    raw["distill"]["students"]["student"] |= student
    raw["base"] |= base
    raw["couple"]["inverted"] = raw["couple"]["pairs"] if base else 0
    return training_passes(validate(raw, "digits"))


def test_training_passes_count_what_was_spent_once():
    # 900,000 images; twice 100,000 pairs of 16 evaluations and 600,000 images; 600,000, and 1.5 more for each in
    # the last quarter.
    own = 600_000 + 225_000
    assert passes({}) == {"base": 900_000, "r1": 3_100_000, "r2": 5_300_000, "student": 3_100_000 + own}
    # Of r2, from the base: r1 made its pairs, so its training counts, and the base once.
    assert passes({"init": "base", "couplings": "r2"})["student"] == 3_100_000 + 1_600_000 + own
    assert passes({"init": "r2", "couplings": "r1"})["student"] == 5_300_000 + own
    taken = passes({}, teacher="a/diffusion/model")
    assert taken == {"base": 0, "r1": 3_800_000, "r2": 7_600_000, "student": 3_800_000 + own}


def test_grids_repeats_and_an_adaptive_solver(tmp_path):
    grids = [{"name": "uniform"}, {"name": "cosine"}]
    params = params_of("digits", repeats=3, grids=grids, dopri5={"rtol": 1e-3, "atol": 1e-3})
    made = make(tmp_path, params)
    assert list(dict.fromkeys(groups_of_page(made.page)[1:])) == [
        "euler, uniform",
        "heun, uniform",
        "ab2, uniform",
        "euler, cosine",
        "heun, cosine",
        "ab2, cosine",
        "dopri5",
    ]
    assert "3 times over" in made.page
    assert "uniform and cosine grids" in made.page
    assert "metrics" not in rows_of_page(made.page)
    assert json.loads((made.reports / "metrics.json").read_text())["fd_cnn64"]["r1"]["nfe_001"] == 1.22
    best = {row[0]: row[1:] for row in rows_of_page(made.page)["best"][1:]}
    assert best["1"][:4] == ["student", "euler, uniform", "1", "0.890 ± 0.027"]
    assert best["16"][:3] == ["r1", "ab2, cosine", "16"]
    assert best["74"][:3] == ["base", "dopri5", "74"]


def test_models_as_good_are_told_by_paired_errors(tmp_path, monkeypatch):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    # r2 at one step a hair below the student: by errors of their own no difference, on common noise a sure one.
    file = layout.scores("r2") / "scores.csv"
    table = pd.read_csv(file, keep_default_na=False)
    row = (table.solver == "euler") & (table.nfe == 1) & (table.metric == "fd_cnn64")
    table.loc[row, ["value", "std"]] = 0.88, 0.0267
    table.to_csv(file, index=False)
    as_good = {}
    for paired in (True, False):
        file = layout.scores("r2") / "jackknife.csv"
        table = pd.read_csv(file)
        row = (table.solver == "euler") & (table.nfe == 1)
        moved = pd.read_csv(layout.scores("student") / "jackknife.csv").value - 0.01
        table.loc[row, "value"] = moved.to_numpy()
        (table if paired else table[~row]).to_csv(file, index=False)
        list(report(params, Stage("report", "")))
        rows = rows_of_page((tmp_path / "reports/index.html").read_text())["best"]
        assert rows[1][:2] == ["1", "r2"]
        as_good[paired] = dict(zip(rows[0], rows[1], strict=True)).get("as good", "")
    assert as_good == {True: "", False: "student"}


def test_no_floor_where_it_is_not_known(tmp_path, monkeypatch):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    write_json(layout.FEATURES / "floor.json", {})
    list(report(params, Stage("report", "")))
    assert "floor" not in (tmp_path / "reports/index.html").read_text()
    assert "floor" not in json.loads((tmp_path / "reports/metrics.json").read_text())


@pytest.mark.parametrize("name", ["digits", "smoke"])
def test_one_nfe(tmp_path, name):
    made = make(tmp_path, params_of(name, solvers={"euler": [1]}))
    assert verdict_of_page(made.page) == []
    found = rows_of_page(made.page)
    assert found["scores"][:2] == [["", "euler"], ["model", "1 NFE"]]
    assert [row[:4] for row in found["best"][1:]] == [["1", "student", "euler", "1"]]
    # One step has no bends: the chart is there, since DVC lists it, and the page says why it shows none.
    assert (made.reports / "straightness.png").exists()
    assert "and so is any single step" in made.page
    assert [event for event in made.events if isinstance(event, Tag)] == [Tag("best-at-1", "student")]


def test_the_tag_is_the_verdict_s_first_sentence(made):
    (tag,) = (event for event in made.events if isinstance(event, Tag) and event.name == "verdict")
    assert tag == Tag("verdict", verdict_of_page(made.page)[0])


def test_the_ceiling_is_what_as_many_pairs_as_samples_would_score(tmp_path, monkeypatch):
    params = params_of("digits")
    monkeypatch.chdir(tmp_path)
    build(params)
    file = layout.scores("couplings-r1") / "scores.csv"
    table = pd.read_csv(file, keep_default_na=False)
    table["n_samples"] = 1000
    table.to_csv(file, index=False)

    def said():
        list(report(params, Stage("report", "")))
        page = (tmp_path / "reports/index.html").read_text()
        assert rows_of_page(page)["pairs"][-1][1] == "0.420 ± 0.013"  # as measured
        ceiling = json.loads((tmp_path / "reports/metrics.json").read_text())["ceiling"]
        return ceiling, " ".join(re.search(r"Dotted, (.*?)</p>", page)[1].split())

    assert params.evaluate.samples == 10_000
    for coefficient, moved, std in ((63.0, -0.0567, "0.01"), (1000.0, 0.0, "0.01"), (None, 0.0, "0.01")):
        floor = {} if coefficient is None else {"coefficient": coefficient, "std": 2.1}
        write_json(layout.FEATURES / "floor.json", floor)
        ceiling, text = said()
        assert ceiling == pytest.approx(0.42 + moved, rel=1e-5)
        matched = "what the student learnt from, which a matched student may pass"
        measured = f"{ceiling:.3g} ± {std}, measured on 1,000 of them"
        assert text.startswith(f"{matched}: the score of the pairs that it learnt, {measured}")
        assert (" and moved by -0.057 to what 10,000 would score." in text) == (moved != 0)


def test_the_ceiling_of_as_many_pairs_is_as_measured(made):
    assert "moved by" not in made.page
    assert "measured on" not in made.page
    assert ("Copies of the training images score below it" in made.page) == (not made.params.is_points)


def test_examples_in_words():
    found = doctest.testmod(words)
    assert found.attempted > 5
    assert found.failed == 0


@pytest.mark.parametrize("name", ["quality", "pareto", "straightness", "training"])
def test_dvc_plots_ask_for_columns_that_there_are(made, name):
    template = json.loads((ROOT / f".dvc/plots/{name}.json").read_text())
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    (plot,) = (entry[name] for entry in plots if isinstance(entry, dict) and name in entry)
    ((file, y),) = plot["y"].items()
    columns = set(pd.read_csv(made.folder / file).columns)
    assert plot["template"] == name
    assert {plot["x"], y} <= columns
    text = json.dumps(template)
    made_here = set(re.findall(r'"as": "([a-z]+)"', text))
    asked = {field for field in re.findall(r'"field": "([a-z_]+)"', text)} - made_here
    asked |= set(re.findall(r"datum\['([a-z_]+)'\]", text)) - made_here
    assert asked - columns == {"rev"}  # which DVC adds, to tell experiments apart
