"""What a run would cost: counts against those of the report, rates against a clock, what DVC would run."""

import json
import subprocess

import pytest

from flows.launch import preview
from flows.params.preset import overlaid
from flows.params.reading import validate
from flows.report.results import training_passes


def params_of(name, **students):
    raw = json.loads(json.dumps(overlaid(name)))
    if students:
        raw["distill"]["students"] = students
    return validate(raw, name)


@pytest.mark.parametrize("name", ["digits", "endings", "mnist", "diffusion", "latents"])
def test_what_is_counted_is_what_the_report_counts(name):
    params = params_of(name)
    costs = {cost.address: cost for cost in preview.costs(params)}
    passes = training_passes(params)
    for round_, section in params.reflow.rounds.items():
        pairs = costs[f"couple@{round_}"].sampled
        assert passes[round_] - passes[section.teacher] == pairs + costs[f"reflow@{round_}"].trained
    assert passes["base"] == costs["base"].trained
    assert sum(cost.trained for cost in costs.values()) > 0
    scored = [cost for address, cost in costs.items() if address.startswith("evaluate")]
    assert len(scored) == len(params.models)
    assert costs["evaluate_base"].sampled == scored[0].sampled


def test_a_student_of_k_steps_is_scored_at_fewer():
    one = {"name": "regression", "k": 4, "distance": {"name": "squared"}}
    params = params_of("digits", one={"init": "base", "couplings": "r1", "differs": {"ending": one}})
    (cost,) = [cost for cost in preview.costs(params) if cost.address == "evaluate_student@one"]
    assert cost.sampled == 10_000 * (1 + 2 + 4)


@pytest.mark.native
def test_rates_are_measured_and_stated(monkeypatch):
    params = params_of("smoke")
    monkeypatch.setattr(preview, "MEASURED", 0.02)
    rates = preview.Rates(params)
    found = {cost.address: rates.of(cost) for cost in preview.costs(params)}
    assert all(seconds > 0 for seconds in found.values())
    base = next(cost for cost in preview.costs(params) if cost.address == "base")
    once, twice = preview.stated(params, base, 1.0), preview.stated(params, base, 2.0)
    assert once == pytest.approx(2 * twice)
    doubled = preview.stated(params, base._replace(trained=2 * base.trained), 1.0)
    assert doubled == pytest.approx(2 * once)


def test_what_follows_from_a_changed_stage_would_run_too(monkeypatch):
    params, changed = params_of("smoke"), {"couple@r1": [{"changed deps": {"x": "modified"}}]}

    def status(command, **_):
        return subprocess.CompletedProcess(command, 0, json.dumps(changed), "")

    monkeypatch.setattr(preview.subprocess, "run", status)
    runs = preview.would_run(params)
    assert {"couple@r1", "reflow@r1", "report"} <= runs
    assert not {"base", "evaluate_base", "intake"} & runs
    text = preview.table(params, lambda cost: 60.0, runs)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["base"].endswith("no")
    assert lines["reflow@r1"].endswith("yes")
    assert "what would run, about" in text


def test_bad_rates_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["preview", "--tflops", "0"])
    with pytest.raises(SystemExit):
        preview.main()
    assert "--tflops: expected more than 0" in capsys.readouterr().err
