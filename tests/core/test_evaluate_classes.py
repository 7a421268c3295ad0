"""A conditional model's scores from the command line are those of the pipeline's report."""

import csv
from pathlib import Path

import pytest
import torch

from fmcore.cli import main
from fmcore.disk.files import write_tensors
from stage_runs import run, tiny


def evaluated(capsys, *arguments):
    status = main(["evaluate", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("bfloat16", [False], indirect=True)  # the report is in float32
def test_a_conditional_model_has_the_numbers_of_the_report(tmp_path, monkeypatch, capsys, bfloat16):
    monkeypatch.chdir(tmp_path)
    list(run(tiny(conditional=True), "check", "features", "base", "evaluate_base"))
    with Path("scores/base/scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "fd_cnn64"]
    report = {int(row["nfe"]): float(row["value"]) for row in rows}
    options = ("models/base", "--against", "features", "--nfe", "4", "--count", "200", "--out", "t.csv")

    def score():
        with Path("t.csv").open() as file:
            return {row["metric"]: row["value"] for row in csv.DictReader(file)}["fd_cnn64"]

    status, said, _ = evaluated(capsys, *options)
    assert status == 0
    assert "uniformly" not in said
    assert float(score()) == pytest.approx(report[4], rel=1e-4)
    Path("features/labels.safetensors").unlink()
    assert "labels.safetensors is missing: SHA256SUMS beside it lists it" in evaluated(capsys, *options)[2]
    Path("features/SHA256SUMS").unlink()
    assert "how frequent classes are: they are drawn uniformly" in evaluated(capsys, *options)[1]
    assert float(score()) != pytest.approx(report[4], rel=1e-3)
    write_tensors(Path("features/labels.safetensors"), {"label": torch.tensor([3, 10])})
    status, _, error = evaluated(capsys, *options)
    assert status == 2
    assert "labels.safetensors: expected labels in 0..9, got up to 10" in error
