"""The stage couple: what it keeps through a kill, in how many bytes, and that it looks at its pairs."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from fmcore.disk.files import ArtifactError, read_json
from fmcore.disk.pairs import open_pairs
from fmcore.flow.pixels import dequantise
from fmcore.model import load as load_model
from stage_runs import ALL, REGRESSION, events_of, notes, run, small, tiny


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_couplings_killed_while_data_is_inverted_keep_what_was_generated(folder):
    params = tiny(
        couple__inverted=50, couple__grid={"name": "optimised", "trajectories": 4}, base__train=small(500)
    )
    list(run(params, "check", "base", "couple@r1"))
    whole = {p.name: p.read_bytes() for p in sorted((folder / "couplings/r1").rglob("*.safetensors"))}
    stopped = events_of(params, "couple@r1")
    for event in stopped:
        if type(event).__name__ == "Progress" and event.title == "invert r1":
            break
    stopped.close()
    said = notes(run(params, "couple@r1"))
    assert "couple r1: 300 of 300 pairs are there already" in said
    assert {p.name: p.read_bytes() for p in sorted((folder / "couplings/r1").rglob("*.safetensors"))} == whole


@pytest.mark.precisions
def test_couplings_of_8_bit_samples_take_three_bytes_a_number_and_teach_as_well():
    found = {}
    for dtype in ("float32", "uint8"):
        params = tiny(couple__dtype=dtype, couple__inverted=50, distill__ending=REGRESSION)
        list(run(params, *ALL[:6]))
        (x0, x1, _), _ = open_pairs("couplings/r1")
        real = open_pairs("couplings/r1/inverted")[0][:2]
        found[dtype] = x0, x1, real, load_model("models/student").sample(50, 1)
    x0, x1, (back, data), samples = found["uint8"]
    assert (x0.dtype, x1.dtype, back.dtype, data.dtype) == (*[torch.float16, torch.uint8] * 2,)
    torch.testing.assert_close(dequantise(x1), found["float32"][1].clamp(-1, 1), rtol=0, atol=0.02)
    torch.testing.assert_close(dequantise(data), found["float32"][2][1], rtol=0, atol=0.005)
    apart = samples.clamp(-1, 1) - found["float32"][3].clamp(-1, 1)  # pixels end there
    assert float(apart.abs().mean()) < 0.1
    bytes_of = sum(shard.stat().st_size for shard in Path("couplings/r1").glob("pairs-*.safetensors"))
    assert bytes_of < 300 * 64 * 3 + 1000


def test_the_couple_stage_looks_at_its_pairs_and_makes_some_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    params = tiny(couple__inverted=100)
    said = notes(run(params, "check", "base", "couple@r1"))
    assert not any(line.startswith("couple r1: x0_") for line in said)
    generated, inverted = (read_json(tmp_path / "couplings" / at / "quality.json") for at in ("r1", "r1/inverted"))
    assert generated["again"] < 1e-3
    assert 0 < generated["curvature_05"] < generated["curvature"] < generated["curvature_max"]
    histograms = pd.read_csv(tmp_path / "couplings/r1/histograms.csv").groupby("what")["count"].sum()
    assert histograms.to_dict() == {"cost": 300, "norm": 300, "curvature": 256}
    assert generated["cost"] > 0
    assert "again" not in inverted

    # A field that changed its mind in between: what is stored is not what it makes.
    from flows.stages import couple

    right = couple.map_pairs

    def mirrored(folder):
        parts, manifest = right(folder)
        return tuple(part._replace(x1=-part.x1) for part in parts), manifest

    monkeypatch.setattr(couple, "map_pairs", mirrored)
    with pytest.raises(ArtifactError, match=r"pairs made again end .* away from those stored"):
        list(events_of(params, "couple@r1"))

    def spoilt(folder):
        (first, *rest), manifest = right(folder)
        bad = first._replace(x1=first.x1.index_fill(0, torch.tensor([3]), float("nan")))
        return (bad, *rest), manifest

    monkeypatch.setattr(couple, "map_pairs", spoilt)
    with pytest.raises(ArtifactError, match="1 pairs are not finite"):
        list(events_of(params, "couple@r1"))
