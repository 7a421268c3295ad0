"""What cannot be exported is one line, and leaves nothing; the card says what is known."""

from pathlib import Path

import pytest

from fmcore.cli import main
from fmcore.disk.files import write_json
from fmcore.export import formats
from fmcore.export.card import beside
from fmcore.flow.fields import Convention
from fmcore.flow.paths import VP, Discrete
from fmcore.models.folder import save_model
from written import MODELS, contents, write_model

SCORES = """model,round,solver,grid,nfe,metric,value,std,n_samples,n_reference,extractor,extractor_sha256,seed
student,1,euler,uniform,1,fd_cnn64,0.123456,0.0201,2000,1797,cnn64,abc,0
student,1,euler,uniform,4,fd_cnn64,0.05,0.01,2000,1797,cnn64,abc,0
student,1,heun,uniform,3,fd_cnn64,0.04,0.01,2000,1797,cnn64,abc,0
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    network = write_model(folder / "models/student", "unet")
    write_model(folder / "models/mlp", "mlp with classes")
    config, shape, classes = MODELS["unet"]
    options = {"network_config": config, "shape": shape, "num_classes": classes}
    places = {
        "vp": (Convention(VP(0.2, 15.0)), {}),
        "teacher": (Convention(Discrete((0.9, 0.5, 0.1)), "noise", 1.0), {}),
        "k4": (Convention(), {"k": 4}),
    }
    for name, (convention, about) in places.items():
        manifest = {"rounds": 0, "stage": "base", **about}
        save_model(folder / "models" / name, network, convention=convention, manifest=manifest, **options)
    (folder / "scores/student").mkdir(parents=True)
    (folder / "scores/student/scores.csv").write_text(SCORES)
    (folder / "scores/short.csv").write_text("solver,nfe\neuler,1\n")
    (folder / "full").mkdir()
    (folder / "full/mine").write_bytes(b"mine")
    about = {"name": "digits", "count": 1797, "num_classes": 10, "sha256": "feed"}
    write_json(folder / "dataset/manifest.json", about)
    return folder


MISTAKES = {
    "unknown format": ("student", "tflite", [], "--to: expected one of diffusers, onnx, torch, got 'tflite'"),
    "an mlp": (
        "mlp",
        "diffusers",
        [],
        "no network like 'mlp': expected a unet; --to onnx and --to torch take this",
    ),
    "another path": ("vp", "diffusers", [], "predicts velocity on the path vp"),
    "a diffusion model": ("teacher", "torch", [], "its predicted data is cut at every step"),
    "another solver": ("student", "diffusers", ["--solver", "ab2"], "equal Euler steps without guidance"),
    "evaluations that cannot be spent": ("student", "torch", ["--solver", "heun", "--nfe", "4"], "cannot spend 4"),
    "no evaluations": ("student", "diffusers", ["--nfe", "0"], "cannot spend 0"),
    "steps it does not know": ("k4", "diffusers", ["--nfe", "3"], "was distilled for 4 Euler steps"),
    "too many": ("student", "onnx", ["--nfe", "65"], "expected --nfe of at most 64, got 65"),
    "a stochastic solver": ("student", "torch", ["--solver", "sde"], "sde draws noise at each step"),
    "an adaptive solver": ("student", "torch", ["--solver", "dopri5"], "unknown solver 'dopri5'"),
    "guidance": ("mlp", "torch", ["--guidance", "2", "--nfe", "2"], "trained without label dropout"),
    "no model": ("nowhere", "torch", [], "nowhere"),
    "no scores": ("student", "diffusers", ["--scores", "nowhere.csv"], "nowhere.csv cannot be read"),
    "other columns": (
        "student",
        "diffusers",
        ["--scores", "scores/short.csv"],
        "lacks lines or columns grid, metric",
    ),
    "of another model": (
        "k4",
        "diffusers",
        ["--scores", "scores/student/scores.csv"],
        "expected scores of model 'k4', got those of student",
    ),
}


@pytest.mark.native
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(project, tmp_path, monkeypatch, capsys, mistake):
    monkeypatch.chdir(project)
    model, kind, more, message = MISTAKES[mistake]
    assert main(["export", f"models/{model}", "--to", kind, str(tmp_path / "out"), *more]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message in said.err
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("full", "full holds files: expected a new folder"),
        ("full/mine", "full/mine is a file"),
        ("student.onnx", "student.onnx: expected a folder"),
    ],
)
def test_nothing_is_written_over(project, monkeypatch, capsys, out, message):
    monkeypatch.chdir(project)
    assert main(["export", "models/student", "--to", "torch", out]) == 2
    assert message in capsys.readouterr().err
    assert contents(project / "full") == {"mine": b"mine"}


def test_missing_packages_are_named_with_what_installs_them(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert main(["export", str(project / "models/student"), "--to", "onnx", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert said.endswith("--to onnx needs onnxscript: pip install onnx onnxscript onnxruntime\n")


def test_a_model_at_the_root_of_the_disk_has_nothing_beside_it():
    assert beside(Path("/model")) == (None, None)


def test_the_card_says_what_lies_beside_the_model(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    out = tmp_path / "away"
    out.mkdir()  # an empty one will do
    assert main(["export", "models/student", "--to", "diffusers", str(out), "--nfe", "4"]) == 0
    said = (out / "README.md").read_text()
    assert said.startswith("---\nlicense:  # to fill in")
    assert "python -m fmcore export models/student away --to diffusers --nfe 4 --solver euler" in said
    assert "| fd_cnn64 | 1 | 0.1235 ± 0.02 | 2000 | 1797 | cnn64 |" in said
    assert "| fd_cnn64 | 4 | **0.05 ± 0.01** |" in said
    assert "| 3 |" not in said  # another solver's
    assert "`digits`, 1,797 samples, 10 classes, SHA-256 `feed`." in said
    assert "images of shape 1 x 8 x 8 (channels, height, width) from noise, here in 4 evaluations" in said
    assert "![Samples](samples.png)" in said
    assert str(tmp_path) not in said


def test_the_card_says_what_is_not_known(project, tmp_path):
    write_model(tmp_path / "m", "unet")
    assert main(["export", str(tmp_path / "m"), "--to", "diffusers", str(tmp_path / "d"), "--nfe", "2"]) == 0
    said = (tmp_path / "d/README.md").read_text()
    assert "None were found beside the model." in said
    assert "To fill in: what it was trained on" in said
    scores = project / "scores/student/scores.csv"
    options = ["--nfe", "2", "--scores", str(scores)]
    assert (
        main(["export", str(project / "models/student"), "--to", "diffusers", str(tmp_path / "e"), *options]) == 0
    )
    assert "At 2 evaluations, as it is here, it was not scored." in (tmp_path / "e/README.md").read_text()
