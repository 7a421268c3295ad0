"""What older versions left on disk is used by this one: tests/artifacts has a little of each release."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

import fmcore
from flows.params import upgrade
from flows.params.reading import load_yaml, read
from fmcore.disk.pairs import open_pairs
from fmcore.flow.times import UniformGrid
from fmcore.ode.solvers import SOLVERS
from repository import ROOT

ARTIFACTS = ROOT / "tests/artifacts"
RELEASES = sorted(folder for folder in ARTIFACTS.iterdir() if (folder / "samples.json").exists())
PARAMS = sorted((ARTIFACTS / "params").iterdir())


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request):
    return request.param


def test_models_sample_as_they_did(release):
    for name, expected in json.loads((release / "samples.json").read_text()).items():
        folder, _, ema = name.partition(", ema ")
        model = fmcore.load(release / "models" / folder, ema=float(ema) if ema else None)
        found = model.sample(3, model.k or 4, seed=0, precision="fp32")
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_models_say_what_they_were(release):
    base, student = (fmcore.load(release / "models" / name) for name in ("base", "student"))
    assert (base.k, student.k) == (None, 1)
    assert base.is_paired, "this one by minibatch OT"
    assert (base.manifest["rounds"], student.manifest["rounds"]) == (0, 1)


def test_couplings_are_trained_on_and_gone_on_with(release):
    for folder in (release / "couplings/r1", release / "couplings/r1/inverted"):
        pairs, manifest = open_pairs(folder)
        assert len(pairs.x0) == manifest["pairs"]
        assert manifest["solver"] in SOLVERS
        assert manifest["grid"][0] == 0
        assert manifest["teacher"]["sha256"] == fmcore.load(release / "models/base").digest


# --- params.yaml --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("old", PARAMS, ids=lambda path: path.stem)
def test_params_of_every_version_so_far_are_brought_up_to_date(project, old, capsys):
    shutil.copy(old, "params.yaml")
    before = load_yaml(Path("params.yaml"))
    assert upgrade.main() == 0
    params, said = read(Path("params.yaml")), capsys.readouterr().out
    assert params.base.train.images == before["base"]["train"]["images"]
    known = before["distill"].get("ending")  # of later versions
    drew_to_data = known["name"] == "matched" if known else bool(before["distill"].get("match"))
    assert params.distill.ending.name == ("matched" if drew_to_data else "regression"), (
        "what it does is what it did"
    )
    assert drew_to_data or params.distill.ending.k == before["distill"]["k"]
    (student,) = params.distill.students.values()
    assert (student.init, student.couplings) == tuple(before["distill"][key] for key in ("init", "couplings"))
    text = Path("params.yaml").read_text()
    for comment in ("# Every key must stand here.", "# auto | cpu | cuda;"):
        assert comment in text
    if Path("params.yaml").read_bytes() != old.read_bytes():
        assert Path("params.yaml.bak").read_bytes() == old.read_bytes()
    if "grid" in before["evaluate"]:
        assert "evaluate.grid is called evaluate.grids now" in said
        assert params.evaluate.grids == (UniformGrid(),)
    assert upgrade.main() == 0
    assert capsys.readouterr().out == "params.yaml is up to date\n"
    assert Path("params.yaml").read_text() == text


def test_what_this_version_ships_is_up_to_date(project, capsys):
    shutil.copy("presets/digits.yaml", "params.yaml")
    assert upgrade.main() == 0
    assert capsys.readouterr().out == "params.yaml is up to date\n"
    assert not list(project.rglob("*.bak"))


def test_choices_and_overrides_are_upgraded_too(project, capsys):
    yaml = YAML()
    raw = yaml.load(PARAMS[0])
    raw["base"]["path"] = "cosine"
    raw["network"] = {"name": "unet", "channels": [32, 64]}
    raw["reflow"]["rounds"]["r2"]["train"] = {"ema_halflife_images": 7000}
    raw["features"]["extractor"] = "inception"
    yaml.dump(raw, Path("params.yaml"))
    (project / "presets/mine.yaml").write_text(
        "base: {path: linear}  # mine\nevaluate: {grid: {name: cosine}}\nnetwork: {name: unet, layers: 2}\n"
    )
    assert upgrade.main() == 0
    params = read(Path("params.yaml"))
    assert params.base.path.name == "cosine"
    assert params.network.name == "unet"
    assert params.train_of("r2").ema_halflife_images == (7000,)
    assert params.features.extractor == "inception-v3-compat"
    said = capsys.readouterr().out
    assert "reflow.rounds.r2.train.ema_halflife_images is written [7000] now" in said
    assert "presets/mine.yaml: evaluate.grid is called evaluate.grids now" in said
    assert "presets/mine.yaml: network.patch is new: 1" in said
    assert "# mine" in (project / "presets/mine.yaml").read_text()


@pytest.mark.parametrize(("grey", "channels"), [(False, 3), (True, 1)])
def test_a_folder_of_images_goes_on_as_it_was(project, capsys, grey, channels):
    yaml = YAML()
    raw = yaml.load(PARAMS[-1])
    raw["data"] = {"name": "images", "root": "pictures", "size": 32, "grey": grey}
    yaml.dump(raw, Path("params.yaml"))
    assert upgrade.main() == 0
    data = read(Path("params.yaml")).data
    assert (data.shape, data.fit, data.levels) == ((channels, 32, 32), "crop", "auto")
    said = capsys.readouterr().out
    assert f"data.grey is called data.channels now: {channels}" in said
    assert 'data.background is new: "white"' in said


def test_a_key_that_nobody_knows_is_named(project, capsys):
    Path("params.yaml").write_text(PARAMS[0].read_text() + "colour: red\n")
    assert upgrade.main() == 2
    assert "colour: unknown key" in capsys.readouterr().err
