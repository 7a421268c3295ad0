"""The pair-quality table: noise passes, every way of not being noise is named, numbers are those of NumPy."""

import numpy as np
import pytest
import torch
from test_variants import events_of, notes, run, tiny

from fmcore.couplings import Pairs
from fmcore.quality import pair_quality, suspicions
from fmcore.store import ArtifactError, read_json

COUNT, SHAPE = 4000, (1, 4, 4)


def noise(seed=0, shape=SHAPE):
    return torch.randn((COUNT, *shape), generator=torch.Generator().manual_seed(seed))


def batches(x0, x1=None, label=None, size=700):
    x1 = x0 + 1 if x1 is None else x1
    for first in range(0, len(x0), size):
        rows = slice(first, first + size)
        yield Pairs(x0[rows], x1[rows], None if label is None else label[rows])


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 4, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_suspicious(shape, seed):
    quality = pair_quality(batches(noise(seed, shape)))
    assert suspicions(quality) == []
    assert all(abs(value) < 4 for name, value in quality.items() if name.endswith("_sigmas"))


def test_standard_errors_are_right():
    """Over many sets of noise, each statistic is as many standard errors off as a normal variable is."""
    drawn = [pair_quality(batches(noise(seed))) for seed in range(60)]
    for name in ("mean", "square", "fourth", "neighbours"):
        off = np.array([quality[f"x0_{name}_sigmas"] for quality in drawn])
        assert 0.75 < off.std() < 1.3, name
        assert abs(off.mean()) < 0.5, name


FAULTS = {
    "shifted": (lambda z: z + 0.05, "x0_mean"),
    "too small": (lambda z: 0.95 * z, "x0_square"),
    "uniform of variance 1": (lambda z: (torch.special.ndtr(z) - 0.5) * 12**0.5, "x0_fourth"),
    "smooth": (lambda z: (z + z.roll(1, -1)) / 2**0.5, "x0_neighbours"),
    "not a number": (lambda z: z.masked_fill(z > 3, float("nan")), "x0_mean"),
    "data instead": (lambda z: z.sign(), "x0_fourth"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_noise_is_named(fault):
    change, name = FAULTS[fault]
    lines = suspicions(pair_quality(batches(change(noise()))))
    assert any(line.startswith(f"{name} is ") for line in lines), lines


def test_numbers_are_those_of_numpy():
    x0, x1 = noise(0), 3 * noise(1)
    label = torch.arange(COUNT) % 3
    quality = pair_quality(batches(x0, x1, label), 4)
    z, cost = x0.double().numpy(), ((x1 - x0).double().numpy() ** 2).mean((1, 2, 3))
    expected = {
        "x0_mean": z.mean(), "x0_square": (z**2).mean(), "x0_fourth": (z**4).mean(),
        "x0_neighbours": (z[..., 1:] * z[..., :-1]).mean(), "cost": cost.mean(), "cost_max": cost.max(),
        "cost_05": np.quantile(cost, 0.05, method="nearest"), "cost_95": np.quantile(cost, 0.95, method="nearest"),
        "class_least": 0, "class_most": 4 * np.bincount(label.numpy()).max() / COUNT,
    }  # fmt: skip
    for name, value in expected.items():
        assert quality[name] == pytest.approx(value, rel=1e-3, abs=1e-9), name
    assert suspicions(quality) == ["a class has no pairs"]


def test_the_couple_stage_looks_at_its_pairs_and_makes_some_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    params = tiny(couple__inverted=100)
    said = notes(run(params, "check", "base", "couple@r1"))
    assert not any(line.startswith("couple r1: x0_") for line in said)
    generated, inverted = (read_json(tmp_path / "couplings" / at / "quality.json") for at in ("r1", "r1/inverted"))
    assert generated["again"] < 1e-3
    assert generated["cost"] > 0
    assert "again" not in inverted

    # A field that changed its mind in between: what is stored is not what it makes.
    from flows import couple

    right = couple.open_pairs
    monkeypatch.setattr(
        couple, "open_pairs", lambda folder: (right(folder)[0]._replace(x1=-right(folder)[0].x1), {})
    )
    with pytest.raises(ArtifactError, match=r"pairs made again end .* away from those stored"):
        list(events_of(params, "couple@r1"))
