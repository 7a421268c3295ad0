"""The program that is exported carries noise where our own samplers do; files of it run without us."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from fmcore.export.formats import export
from fmcore.export.program import Sampler
from fmcore.flow import rng
from fmcore.flow.fields import OURS, Convention, Guidance
from fmcore.flow.paths import VE, VP, Cosine, Discrete
from fmcore.flow.times import uniform_grid
from fmcore.model import load
from fmcore.models.folder import save_model
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import SOLVERS, cost, integrate
from written import MODELS, contents, write_model

CONVENTIONS = {
    "ours": OURS,
    "vp": Convention(VP(0.2, 15.0)),
    "cosine": Convention(Cosine()),
    "student of a diffusion model": Convention(Discrete((0.99, 0.9, 0.5, 0.1, 0.01)), "v"),
    "edm": Convention(VE(0.002, 80.0), "data"),
}


def of_convention(folder, convention, null_label=None):
    network = write_model(folder / "plain", "mlp with classes")
    config, shape, classes = MODELS["mlp with classes"]
    options = {"network_config": config, "shape": shape, "num_classes": classes, "manifest": {"rounds": 0}}
    save_model(folder / "m", network, convention=convention, null_label=null_label, **options)
    return load(folder / "m")


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("solver", [name for name, solver in SOLVERS.items() if not solver.stochastic])
def test_every_solver_on_every_convention(tmp_path, solver, name):
    model = of_convention(tmp_path, CONVENTIONS[name], null_label=3)
    for guidance in (None, Guidance(2.5)):
        nfe = cost(SOLVERS[solver], 2) * (2 if guidance else 1)
        how = Sampling(solver, nfe=nfe, guidance=guidance)
        noise, label = torch.randn(5, *model.shape), torch.tensor([0, 1, 2, 0, 1])
        wanted = integrate(model.field("fp32", guidance), noise, how.knots(), how.method, label)
        found = Sampler(model, how, pixels=False)(noise, label)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if "unet" in kind])
def test_the_network_is_copied_whole(tmp_path, kind):
    write_model(tmp_path, kind)
    model = load(tmp_path)
    label = None if model.num_classes is None else torch.zeros(70, dtype=torch.int64)
    for count in (1, 70):
        noise = torch.randn(count, *model.shape)
        part = None if label is None else label[:count]
        wanted = integrate(model.field("fp32"), noise, uniform_grid(2), SOLVERS["euler"], part)
        found = Sampler(model, Sampling(nfe=2), pixels=False)(noise, part)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


ALONE = """
import sys
sys.modules["fmcore"] = sys.modules["diffusers"] = None  # an import fails
import torch
sample = torch.export.load("t/model.pt2").module()
noise, label = torch.load("noise.pt", weights_only=True)
torch.save([sample(noise[:n], label[:n]) for n in (1, 2, 70)], "found.pt")
"""


def test_a_program_of_torch_runs_alone(tmp_path):
    write_model(tmp_path / "m", "unet with classes")
    model, how = load(tmp_path / "m"), Sampling(nfe=1)
    files = export(model, how, "torch", tmp_path / "t", folder=tmp_path / "m", command="")
    assert files == ["README.md", "model.pt2", "samples.png"]
    noise, label = rng.noise(0, "sample", 0, 70, model.shape), torch.full((70,), 2)
    torch.save((noise, label), tmp_path / "noise.pt")
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    wanted = model.sample(70, how, label=2, precision="fp32")
    for found in torch.load(tmp_path / "found.pt", weights_only=True):
        torch.testing.assert_close(found, wanted[: len(found)], rtol=1e-5, atol=1e-5)
    code = (tmp_path / "t/model.pt2").read_bytes()
    assert str(tmp_path).encode() not in code
    assert b".py" not in code  # nor where our sources lie


def test_onnxruntime_draws_our_points(tmp_path):
    import onnx
    import onnxruntime

    write_model(tmp_path / "m")
    model, how = load(tmp_path / "m"), Sampling("heun", nfe=3)
    for name in "ab":
        export(model, how, "onnx", tmp_path / name, folder=tmp_path / "m", command="")
    assert contents(tmp_path / "a").keys() == {"README.md", "model.onnx", "samples.png"}
    assert contents(tmp_path / "a")["model.onnx"] == contents(tmp_path / "b")["model.onnx"]
    onnx.checker.check_model(tmp_path / "a/model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "a/model.onnx")
    assert [(node.name, node.shape) for node in session.get_inputs()] == [("noise", ["batch", 2])]
    assert [(node.name, node.shape) for node in session.get_outputs()] == [("samples", ["batch", 2])]
    noise = rng.noise(0, "sample", 0, 70, (2,)).numpy()
    wanted = model.sample(70, how, precision="fp32").numpy()
    for count in (1, 2, 70):
        (found,) = session.run(None, {"noise": noise[:count]})
        np.testing.assert_allclose(found, wanted[:count], rtol=1e-5, atol=1e-5)
    assert b".py" not in (tmp_path / "a/model.onnx").read_bytes()
