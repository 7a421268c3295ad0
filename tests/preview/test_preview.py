"""What a run would cost: counts against those of the report, rates against a clock, what DVC would run."""

import json

import pytest

from flows.params.preset import overlaid
from flows.params.reading import validate
from flows.pipeline.plan import ALWAYS_RUNS
from flows.preview import __main__ as preview
from flows.preview import rates
from flows.preview.costs import costs
from flows.preview.rates import Rates, stated
from flows.report.results import training_passes
from repository import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of DVC's own


def params_of(name, **sections):
    raw = json.loads(json.dumps(overlaid(name)))
    for section, values in sections.items():
        raw[section] = raw[section] | values if isinstance(values, dict) else values
    return validate(raw, name)


@pytest.mark.parametrize("name", ["digits", "endings", "mnist", "diffusion", "latents"])
def test_what_is_counted_is_what_the_report_counts(name):
    params = params_of(name)
    found = {cost.address: cost for cost in costs(params)}
    passes = training_passes(params)
    for round_, section in params.reflow.rounds.items():
        pairs = found[f"couple@{round_}"].sampled
        assert passes[round_] - passes[section.teacher] == pairs + found[f"reflow@{round_}"].trained
    assert passes["base"] == found["base"].trained
    assert sum(cost.trained for cost in found.values()) > 0
    scored = [cost for address, cost in found.items() if address.startswith("evaluate")]
    assert len(scored) == len(params.models)
    assert found["evaluate_base"].sampled == scored[0].sampled


def test_a_student_of_k_steps_is_scored_at_fewer():
    one = {"name": "regression", "k": 4, "distance": {"name": "squared"}}
    params = params_of(
        "digits", distill={"students": {"one": {"init": "base", "couplings": "r1", "differs": {"ending": one}}}}
    )
    (cost,) = [cost for cost in costs(params) if cost.address == "evaluate_student@one"]
    assert cost.sampled == 10_000 * (1 + 2 + 4)


def test_what_scoring_leaves_out_is_not_counted():
    """Grids of one step are the same grid, and stochastic solvers need a model whose pairs were independent."""
    grids = [{"name": "uniform"}, {"name": "sigmoid", "kappa": 10.0}]
    section = {"solvers": {"euler": [1, 4], "sde": [8]}, "grids": grids, "samples": 10_000, "repeats": 1}
    params = params_of("digits", evaluate=section | {"dopri5": None})
    found = {cost.address: cost.sampled for cost in costs(params)}
    assert found["evaluate_base"] == 10_000 * (1 + 4 + 8 + 4 + 8)
    assert found["evaluate@r1"] == 10_000 * (1 + 4 + 4)


def test_guidance_is_within_the_evaluations_of_a_pair():
    guided = {"guidance": {"scale": 2.0, "start": 0.0, "stop": 1.0}, "nfe": 16, "pairs": 1000, "inverted": 0}
    params = params_of("mnist", conditional=True, base={"label_dropout": 0.1}, couple=guided)
    (cost, *_) = [cost for cost in costs(params) if cost.address.startswith("couple")]
    assert cost.sampled == 16_000


@pytest.mark.native
def test_rates_are_measured_and_stated(monkeypatch):
    params = params_of("smoke")
    monkeypatch.setattr(rates, "MEASURED", 0.02)
    here = Rates(params)
    found = {cost.address: here.of(cost) for cost in costs(params)}
    assert all(seconds > 0 for seconds in found.values())
    base = next(cost for cost in costs(params) if cost.address == "base")
    once, twice = stated(params, base, 1.0), stated(params, base, 2.0)
    assert once == pytest.approx(2 * twice)
    doubled = stated(params, base._replace(trained=2 * base.trained), 1.0)
    assert doubled == pytest.approx(2 * once)


def test_what_follows_from_a_changed_stage_would_run_too(monkeypatch):
    changed = {"couple@r1": "couple.nfe changed", "look": ALWAYS_RUNS}
    monkeypatch.setattr(preview, "changes", lambda root: changed)
    runs = preview.would_run(ROOT)
    assert {"couple@r1", "reflow@r1", "report"} <= runs
    assert not {"base", "evaluate_base", "intake", "look"} & runs
    text = preview.table(params_of("digits"), lambda cost: 60.0, runs)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["base"].endswith("no")
    assert lines["reflow@r1"].endswith("yes")
    assert "what would run, about" in text


def test_changed_data_files_would_run_all_that_reads_them(monkeypatch):
    monkeypatch.setattr(preview, "changes", lambda root: {"look": "data changed"})
    assert {"intake", "base", "report"} <= preview.would_run(ROOT)


def test_where_dvc_cannot_say_the_table_does_not(monkeypatch):
    monkeypatch.setattr(preview, "changes", lambda root: None)
    assert preview.would_run(ROOT) is None
    text = preview.table(params_of("digits"), lambda cost: 60.0, None)
    assert "would run, about" not in text
    assert text.splitlines()[1].endswith("?")


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_bad_rates_are_refused(monkeypatch, capsys, rate):
    monkeypatch.setattr("sys.argv", ["preview", "--tflops", rate])
    with pytest.raises(SystemExit):
        preview.main()
    assert "--tflops: expected a number above 0" in capsys.readouterr().err
