"""The command line: a user's mistake is one line and exit status 2."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fmcore.cli import main
from fmcore.cli.evaluate import naming
from fmcore.disk.files import read_tensors
from fmcore.flow.pixels import dequantise
from fmcore.model import load as load_model
from fmcore.models.networks import MLP
from fmcore.ode.sampling import Sampling
from fmcore.progress import Progress
from fmcore.score.extractors import Extractor, adopt
from fmcore.score.frechet import frechet_distance, stats
from fmcore.score.reference import reference_parts, save_reference
from repository import ROOT
from written import write_network

SHAPES = {"points": ((2,), None), "images": ((1, 8, 8), 10), "three": ((3,), None)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a model of points, one of images with classes and one of what has no picture."""
    folder = tmp_path_factory.mktemp("models")
    for name, (shape, classes) in SHAPES.items():
        write_network(folder / name, MLP(width=16, depth=1), shape, classes)
    return folder


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ,
    )


@pytest.mark.parametrize("name", ["points", "images"])
def test_samples_become_a_picture(models, tmp_path, name):
    out = tmp_path / "new" / "samples.png"
    found = python("-m", "fmcore", "sample", models / name, "--nfe", 2, "--count", 9, "--out", out)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"9 samples at 2 NFE -> {out}\n"
    with Image.open(out) as image:
        assert image.format == "PNG"


@pytest.mark.native
@pytest.mark.parametrize("name", SHAPES)
def test_samples_become_tensors(models, tmp_path, name):
    out = tmp_path / "samples.safetensors"
    arguments = ["--nfe", "3", "--count", "5", "--solver", "heun", "--seed", "3", "--out", str(out)]
    assert main(["sample", str(models / name), *arguments]) == 0
    assert read_tensors(out).keys() == {"x1"}
    wanted = load_model(models / name).sample(5, Sampling("heun", nfe=3), seed=3)
    torch.testing.assert_close(read_tensors(out)["x1"], wanted)


@pytest.mark.native
def test_a_label_is_handed_on(models, tmp_path):
    for label in ("0", "9"):
        out = str(tmp_path / f"{label}.safetensors")
        assert main(["sample", str(models / "images"), "--label", label, "--count", "2", "--out", out]) == 0
    assert not torch.equal(
        read_tensors(tmp_path / "0.safetensors")["x1"], read_tensors(tmp_path / "9.safetensors")["x1"]
    )


MISTAKES = {
    "no such model": ("nowhere", {}, "nowhere"),
    "a file as model": ("points/model.safetensors", {}, "model.safetensors"),
    "no evaluations": ("points", {"--nfe": "0"}, "cannot spend 0"),
    "odd evaluations": ("points", {"--nfe": "4", "--solver": "heun"}, "cannot spend 4"),
    "unknown solver": ("points", {"--solver": "rk9"}, "'rk9': expected one of euler"),
    "label too large": ("images", {"--label": "10"}, "label must lie in 0..9, got 10"),
    "label without classes": ("points", {"--label": "1"}, "trained without classes"),
    "no samples": ("points", {"--count": "0"}, "--count must be at least 1"),
    "unknown suffix": ("points", {"--out": "x.jpg"}, "--out must end in .png or .safetensors"),
    "unknown device": ("points", {"--device": "toaster"}, "toaster"),
    "label without names": ("images", {"--label": "cat"}, "a number, since this model's classes have no names"),
    "no folder for it": ("points", {"--out": "{models}/points/config.json/x.png"}, "config.json"),
}


@pytest.mark.native
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(models, tmp_path, capsys, mistake):
    model, options, message = MISTAKES[mistake]
    options = {"--out": str(tmp_path / "x.png"), **options}
    flags = [part.format(models=models) for pair in options.items() for part in pair]
    assert main(["sample", str(models / model), *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "x.png").exists()


# --- anyone's images against anyone's images ----------------------------------------------------------------

NETS = """
import torch

def corners(pixels):
    return pixels[:, :, ::3, ::3].flatten(1).float()

def nothing(pixels):
    found = corners(pixels)
    found[pixels[:, 0, 0, 0] == 255] = torch.nan
    return found
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two folders of 120 grey 4x4 images, their pixels, and a module with functions of a user beside them."""
    folder = tmp_path_factory.mktemp("images")
    pixels = torch.randint(250, (240, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels[120:] //= 2
    for name, part in (("a", pixels[:120]), ("b", pixels[120:])):
        (folder / name).mkdir()
        for i, image in enumerate(part):
            Image.fromarray(image[0].numpy()).save(folder / name / f"{i:03d}.png")
    (folder / "nets_beside.py").write_text(NETS)
    return folder, pixels


def evaluated(capsys, *arguments):
    status = main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def beside(images, monkeypatch):
    """The folder as the current one."""
    monkeypatch.chdir(images[0])
    monkeypatch.setattr(sys, "path", [*sys.path])
    return images[0]


@pytest.mark.parametrize(
    ("kind", "metric"), [("pixels", "pixels16"), ("random", "random64"), ("nets_beside:corners", "corners")]
)
def test_two_folders_are_compared_by_the_extractor_named(images, beside, capsys, kind, metric):
    options = ("--extractor", kind, "--metrics", "kid,frechet_infinity")
    status, out, _ = evaluated(capsys, beside / "a", "--against", beside / "b", *options)
    assert status == 0
    found = {line.split()[0]: float(line.split()[1]) for line in out.splitlines()[1:]}
    assert set(found) == {f"fd_{metric}", f"fd_{metric}_inf", "kid"}
    features = {"pixels": dequantise, "nets_beside:corners": lambda x: x[:, :, ::3, ::3].float()}.get(kind)
    if features:
        a, b = (stats(features(part).flatten(1)) for part in images[1].split(120))
        assert found[f"fd_{metric}"] == pytest.approx(frechet_distance(a, b), rel=1e-5)


def test_a_function_is_found_from_the_shell(beside):
    """In the current folder, as `python -m` has it."""
    arguments = ("evaluate", "a", "--against", "b", "--extractor", "nets_beside:corners")
    found = subprocess.run(
        [sys.executable, "-m", "fmcore", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=beside,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "fd_corners" in found.stdout


def test_features_by_a_function_need_its_name_again(images, beside, capsys):
    """Or somebody else's folder could have anything imported that can be."""
    name, pixels = "nets_beside:corners", images[1][120:]
    extractor = adopt(name, beside / "features", (1, 4, 4), [])
    (reference,) = reference_parts(extractor, [pixels], 120)
    save_reference(beside / "features/reference.safetensors", reference)
    against = (beside / "a", "--against", beside / "features")
    status, out, said = evaluated(capsys, *against)
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert f"made with {name}, run only if named; expected --extractor {name}" in said
    status, out, said = evaluated(capsys, *against, "--extractor", "pixels")
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert f"expected features of pixels, got those of {name}" in said
    status, out, _ = evaluated(capsys, *against, "--extractor", name)
    assert status == 0
    assert "fd_corners" in out


def test_features_that_are_not_finite_are_one_line(images, beside, capsys):
    Image.new("L", (4, 4), 255).save(beside / "a/999.png")
    try:
        for a, b in ("ab", "ba"):
            status, out, said = evaluated(capsys, a, "--against", b, "--extractor", "nets_beside:nothing")
            assert (status, out, said.count("\n")) == (2, "", 1)
            assert "fd_nothing" in said
            assert "not finite" in said
            assert "a/999.png" in said
    finally:
        (beside / "a/999.png").unlink()


def test_an_image_is_named_whatever_the_batch(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(9)]
    extractor = Extractor("mine", 1, "", lambda x: torch.where(x[:, 0, 0] > 0, torch.nan, 1.0))
    pixels = torch.zeros(9, 1, 1, 1, dtype=torch.uint8)
    pixels[7] = 1
    for batch in (1, 2, 4, 9):
        named = naming(extractor, files)
        with pytest.raises(ValueError, match=r"7\.png: its features by fd_mine are not finite"):
            list(map(named, torch.split(pixels, batch)))


def test_several_lines_of_an_error_become_one(models, tmp_path, monkeypatch, capsys):
    def load(*args, **options):
        raise RuntimeError("Error(s) in loading:\n\tMissing key(s): a.\n\tUnexpected: b  b.")

    monkeypatch.setattr("fmcore.model.load", load)
    assert main(["sample", str(models / "points"), "--out", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert said == "fmcore sample: Error(s) in loading: Missing key(s): a. Unexpected: b  b.\n"


def test_the_help_says_which_classes_and_how_many(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "a conditional model draws classes as often as the data has them" in said
    assert "default 10000 of a model, all images of a folder" in said


WRONG = {
    "unknown": (
        "clip",
        "efficientnet-lite0, pixels, random or MODULE:FUNCTION, got 'clip'",
    ),
    "must be fitted": (
        "classifier",
        "expected one of inception-v3-compat, efficientnet-lite0, pixels",
    ),
    "no module": ("no_nets:corners", "no module 'no_nets'"),
    "no function": ("nets_beside:edges", "expected a function 'edges'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_extractor_is_one_line(beside, capsys, case):
    kind, message = WRONG[case]
    status, out, said = evaluated(capsys, "a", "--against", "b", "--extractor", kind)
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert message in said


def test_inception_is_the_default_and_looked_for_in_the_cache(beside, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    status, out, said = evaluated(capsys, "a", "--against", "b")
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert f"no Inception weights at {tmp_path / 'hub/checkpoints'}" in said


def test_class_scores_need_classes(beside, capsys):
    arguments = ("a", "--against", "b", "--extractor", "pixels", "--metrics", "inception_score")
    status, out, said = evaluated(capsys, *arguments)
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert "inception_score needs class scores" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_one_line(models, tmp_path, capsys):
    assert main(["sample", str(models / "points"), "--device", "cuda", "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_model_is_one_line(models, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (models / "points").iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:-9])
    found = python("-m", "fmcore", "sample", broken, "--out", tmp_path / "x.png")
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert found.stderr.count("\n") == 1
    assert "config.json" in found.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["sample"], ["sample", "model"], ["sample", "m", "--nfe", "x"]]
)
def test_usage_errors_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


IMPORT = """
import json, sys, time
start = time.perf_counter()
import fmcore
print(json.dumps([time.perf_counter() - start, sorted(name.split(".")[0] for name in sys.modules)]))
"""


def test_import_is_cheap():
    found = python("-c", IMPORT)
    seconds, modules = json.loads(found.stdout)
    assert not {"torch", "diffusers", "mlflow", "prefect", "dvc", "pydantic", "matplotlib", "flows"} & set(modules)
    assert seconds < 1.5


def test_progress_is_silent_on_what_takes_a_moment(capsys):
    bar = Progress("pairs", 100, "samples")
    bar.to(100)
    bar.close()
    assert capsys.readouterr().err == ""


def test_progress_speaks_a_line_at_the_end_where_there_is_no_terminal(capsys):
    bar = Progress("pairs", 100, "samples")
    bar.start -= 5
    bar.to(50)
    assert capsys.readouterr().err == ""
    bar.to(100)
    bar.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pairs" in said
    assert "100/100" in said
    assert bar.seconds >= 0


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_more_samples_than_memory_holds_are_refused_before_any_is_drawn(models, tmp_path, capsys, suffix):
    out = tmp_path / f"many.{suffix}"
    assert main(["sample", str(models / "images"), "--count", str(10**12), "--label", "1", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "--count: 1,000,000,000,000 samples of shape (1, 8, 8) take 512000.0 GB as an array" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--nfe", 4), "--nfe: of a model alone"),
        (("--guidance", 2.0, "--solver", "heun"), "--solver, --guidance: of a model alone"),
        (("--device", "meta"), "--device: expected cpu"),
        (("--device", "cuda:99"), "--device: expected cpu"),
        (("--out", "."), "--out: expected a file that can be written, got .: is a folder"),
        (("--out", f"{__file__}/t.csv"), "--out: expected a file that can be written"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_scored(tmp_path, capsys, options, said):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    command = ["evaluate", str(tmp_path), "--against", str(tmp_path / "nothing"), *map(str, options)]
    assert main(command) == 2
    assert said in capsys.readouterr().err
