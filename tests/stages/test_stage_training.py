"""How stages train: on a mix with refreshed data, from the disk, through kills, and when they save."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from flows.stages.training import run_training
from fmcore.disk.files import ArtifactError
from fmcore.disk.pairs import open_pairs
from fmcore.flow.training import Record, TrainConfig
from fmcore.model import load as load_model
from fmcore.ode.solvers import SOLVERS, integrate
from stage_runs import (
    ALL,
    checkpoints_at_every_record,
    events_of,
    killed_at,
    notes,
    points,
    run,
    small,
    tiny,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_reflow_on_a_mix_with_refreshed_real_data(monkeypatch):
    params = tiny(
        flip=True,
        couple__inverted=200,
        couple__ema=5000.0,
        base__train=small(ema_halflife_images=[50, 5000]),
        couple__grid={"name": "optimised", "trajectories": 8},
        reflow__mix={"inverted": 0.4, "until": 0.8, "slerp": 0.1, "refresh_images": 5000},
        reflow__drop_longest=0.1,
        reflow__train=small(12_000),
        evaluate__likelihood={"samples": 20, "solver": "rk4", "nfe": 16, "probes": 1},
        evaluate__grids=[{"name": "cosine"}],
    )
    list(run(params, "check", "features", "base", "couple@r1"))
    second = load_model("models/base", ema=5000.0)
    assert second.digest != load_model("models/base").digest
    generated, manifest = open_pairs("couplings/r1")
    assert manifest["teacher"] == {"model": "base", "sha256": second.digest, "ema": 5000.0}
    grid = torch.tensor(manifest["grid"], dtype=torch.float64)
    assert len(grid) == 5
    torch.testing.assert_close(
        integrate(second.field("fp32"), generated.x0, grid, SOLVERS["euler"]), generated.x1, rtol=1e-3, atol=1e-4
    )
    inverted, _ = open_pairs("couplings/r1/inverted")
    data = params.data.load().x1
    assert all((image == data).flatten(1).all(1).any() for image in inverted.x1[:5])
    back = integrate(second.field("fp32"), inverted.x1, grid.flip(0), SOLVERS["euler"])
    torch.testing.assert_close(back, inverted.x0, rtol=1e-3, atol=1e-4)
    seen = list(run(params, "reflow@r1"))
    assert sum(type(e).__name__ == "Progress" and e.title == "invert r1" and e.done == e.total for e in seen) == 1
    whole = load_model("models/r1").digest

    # Killed between two refreshes, it goes on with the inverted data it had.
    checkpoints_at_every_record(monkeypatch)
    killed_at(events_of(params, "reflow@r1"), 10_000)
    again = [e for e in run(params, "reflow@r1") if type(e).__name__ == "Progress"]
    assert load_model("models/r1").digest == whole
    assert min(e.done for e in again if e.title == "train r1") >= 7500
    assert again[0].title == "train r1", "it does not invert again what it had"

    list(run(params, "distill@student", "evaluate_base", "evaluate_student@student"))
    table = pd.read_csv("scores/base/scores.csv")
    assert set(table[table.metric == "straightness"].grid) == {"cosine"}
    (bits,) = table[table.metric == "bits_per_dim"].itertuples()
    assert (bits.solver, bits.nfe, bits.n_samples) == ("rk4", 16, 20)
    assert 0 < bits.value < 20
    student = pd.read_csv("scores/student/scores.csv")
    assert {"bits_per_dim", "straightness"} < set(student.metric), "a matched flow is a flow"
    assert set(student[student.metric == "straightness"].grid) == {"cosine"}


def test_a_refreshed_training_whose_inverted_data_is_lost_says_so(folder, monkeypatch):
    checkpoints_at_every_record(monkeypatch)
    params = tiny(
        couple__inverted=20,
        reflow__mix={"inverted": 0.5, "until": 1.0, "slerp": 0.0, "refresh_images": 5000},
        reflow__train=small(15_000),
    )
    list(run(params, "check", "base", "couple@r1"))
    killed_at(events_of(params, "reflow@r1"), 10_000)
    for path in (folder / "work" / "reflow-r1").glob("*/inverted-*"):
        path.unlink()
    with pytest.raises(ArtifactError, match=r"inverted-0000000100.safetensors was missing, "):
        list(run(params, "reflow@r1"))


def test_couplings_that_do_not_fit_into_memory_stay_on_disk_and_train_the_same(monkeypatch):
    params = points(couple__batch="auto", reflow__drop_longest=0.1)
    said = notes(run(params, *ALL[:5]))
    assert "couple r1: 512 pairs at a time" in said
    assert "cpu: float32, not compiled (would not pay: 1.1e+09 operations)" in said
    assert not any("stay on disk" in note for note in said)
    weights = Path("models/r1/model.safetensors").read_bytes()
    monkeypatch.setattr("flows.stages.on_couplings.room", lambda device: 1000)
    assert "r1: 0.0 GB of pairs stay on disk and are read as they are drawn" in notes(run(params, "reflow@r1"))
    assert Path("models/r1/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, range(2, 1000, 2)), (0.05, range(2, 1000, 2)), (0.5, range(2, 1000, 4)), (60, range(2, 1000, 86))],
)
def test_checkpoints_that_take_long_are_rarer(seconds, expected, monkeypatch):
    """Records come every 7 seconds, checkpoints after 10, so as to cost two per cent, or after ten minutes."""
    now, at = [0.0], []

    def records(state, objective, config, **options):
        for record in range(1, 1000):
            now[0] += 7.0
            state.step = 50 * record
            yield Record(state.step, state.step, 1.0, 1.0, 1e-3)

    def save(state, work):
        at.append(state.step // 50)
        now[0] += seconds

    monkeypatch.setattr("flows.stages.training.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("flows.stages.training.train", records)
    monkeypatch.setattr(
        "flows.stages.training.checkpoint",
        SimpleNamespace(save=save, restore=lambda state, work: [], size=lambda state: 0, KEEP=2),
    )
    state, config = SimpleNamespace(step=0), TrainConfig(images=100_000, batch_size=1, lr=1e-3)
    list(run_training("base", Path(), state, None, config, 0))
    assert at == list(expected)
