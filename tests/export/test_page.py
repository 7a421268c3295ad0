"""What docs/export.md says is done, in its order, to a model with classes: all ends in our own samples."""

import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from fmcore.cli import main
from fmcore.flow.pixels import quantise
from fmcore.flow.times import uniform_grid
from fmcore.model import load
from fmcore.models.folder import save_model
from fmcore.models.networks import UNet
from fmcore.ode.solvers import EULER, integrate
from repository import ROOT
from test_doctests import BLOCK

pytestmark = [pytest.mark.native, pytest.mark.slow]
BLOCKS = BLOCK.findall((ROOT / "docs/export.md").read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    config = UNet(channels=(8, 16), attention=True)
    torch.manual_seed(0)
    network = config.build((1, 8, 8), 2)
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_model(
        folder / "models/student",
        network,
        network_config=config,
        shape=(1, 8, 8),
        num_classes=2,
        manifest={"stage": "distill", "rounds": 1, "images_seen": 1000},
    )
    return folder


def ours(model, noise, label):
    return integrate(model.field("fp32"), noise, uniform_grid(2), EULER, label)


def test_all_of_the_page_is_done(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    model, label = load("models/student"), torch.tensor([0, 0, 1, 1])
    made = []
    for language, text in BLOCKS:
        for line in text.splitlines() if language == "sh" else ():
            if not line.startswith("pip "):
                assert main(shlex.split(line)[3:]) == 0, capsys.readouterr().err
        if language != "py":
            continue
        names = {}
        exec(text, names)
        made.append(names)
    pipeline, parts, onnx, program = made

    found = ours(model, pipeline["noise"], label)
    torch.testing.assert_close(pipeline["images"], (found / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)
    assert (type(parts["unet"]).__name__, type(parts["scheduler"]).__name__) == (
        "UNet2DModel",
        "FlowMatchEulerDiscreteScheduler",
    )
    wanted = quantise(ours(model, torch.from_numpy(onnx["noise"]), label)).permute(0, 2, 3, 1)
    assert onnx["pixels"].dtype == np.uint8
    assert onnx["pixels"].shape == (4, 8, 8, 1)
    assert np.abs(onnx["pixels"].astype(int) - wanted.numpy()).max() <= 1
    torch.testing.assert_close(program["x1"], ours(model, program["noise"], label), rtol=1e-5, atol=1e-5)

    assert len(list((project / "samples").glob("*.png"))) == 300
    assert sorted(path.name for path in project.glob("grid*.png")) == ["grid-1-of-2.png", "grid-2-of-2.png"]
    assert np.load(project / "ones.npy").shape == (300, 1, 8, 8)
    for name in ("diffusers", "onnx", "torch"):
        with Image.open(project / f"student-{name}/samples.png") as picture:
            assert picture.size == (438, 438)  # 8 x 8 of them, 6 times as large, a pixel between
