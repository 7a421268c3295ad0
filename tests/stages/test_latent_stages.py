"""The pipeline on latents: trained in the latent space, seen, scored and handed on as images."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image

import fmcore
from autoencoders import random_vae, vae_of_digits
from flows.params.files import ParamsError
from flows.registry.packing import signature
from flows.watch.keeping import keep_model
from flows.workshop.place import bring
from fmcore.cli import main
from fmcore.disk.dataset import DataError, load_dataset
from fmcore.disk.files import ArtifactError, read_tensors
from fmcore.flow import rng
from fmcore.flow.pixels import quantise
from fmcore.flow.times import uniform_grid
from fmcore.intake.known import Digits
from fmcore.models.autoencoder import read_autoencoder
from fmcore.models.foreign import WEIGHTS
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import EULER, integrate
from fmcore.score.extractors import load_extractor
from fmcore.score.frechet import frechet_distance, stats
from stage_runs import data_of, events_of, notes, run, tiny
from written import write_model

onnxruntime = pytest.importorskip("onnxruntime")

STAGES = ("check", "features", "base", "couple@r1", "reflow@r1", "distill@student")
SCORED = ("evaluate_base", "evaluate@r1", "evaluate_student@student", "evaluate_pairs@r1", "report")
UNET = {"name": "unet", "channels": [8], "layers": 1, "attention": False, "dropout": 0.0, "patch": 1}


def latent(**changes):
    data = {
        "name": "latents",
        "images": {"name": "digits", "held_out": 0.0},
        "autoencoder": "vae",
        "shape": [4, 4, 4],
    }
    return tiny(data=data, conditional=True, network=UNET, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All stages, run once, and what they said."""
    place = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.delenv("DVC_ROOT", raising=False)
        vae_of_digits(place / "vae")
        said = notes(run(latent(), *STAGES, *SCORED))
    return place, said


@pytest.fixture
def inside(made, monkeypatch):
    monkeypatch.chdir(made[0])
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return made[0]


def rows(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_the_data_set_holds_latents_images_and_the_autoencoder(inside, made):
    data = load_dataset(Path("dataset"))
    assert (data.shape, tuple(data.reference.shape)) == ((4, 4, 4), (1797, 1, 8, 8))
    assert {path.name for path in Path("dataset/autoencoder").iterdir()} == {"config.json", WEIGHTS}
    assert data.encoding.autoencoder == read_autoencoder("vae").digest
    assert data.about["encoded"]["grey_levels"] < 20
    assert any("decoded again, 500 of 1797 images" in line for line in made[1])


@pytest.mark.native
def test_models_make_images_of_the_data_s_shape(inside):
    for name in ("base", "r1", "student"):
        model = fmcore.load(f"models/{name}")
        assert (model.shape, model.sample_shape, model.makes_images) == ((4, 4, 4), (1, 8, 8), True)
        assert not (Path("models") / name / "autoencoder").exists(), "it is kept once"
    images = model.sample(3, 1, seed=5, label=7, precision="fp32")
    assert images.shape == (3, 1, 8, 8)
    # The same by hand: the flow's own sample, in the units of the latents, decoded by diffusers.
    x0 = torch.stack([rng.noise(5, "sample", i, 1, (4, 4, 4))[0] for i in range(3)])
    v = model.field("fp32")(x0, torch.zeros(3), torch.full((3,), 7))
    units = model.encoding.units
    z = (x0 + v) * torch.tensor(units.std).view(-1, 1, 1) + torch.tensor(units.mean).view(-1, 1, 1)
    theirs = AutoencoderKL.from_pretrained("vae").decode(z).sample
    torch.testing.assert_close(images, theirs.detach(), atol=1e-4, rtol=1e-4)


def test_scores_and_pictures_are_of_decoded_images(inside):
    for name in ("base", "r1", "student", "couplings-r1"):
        found = rows(f"scores/{name}/scores.csv")
        assert {row["metric"] for row in found} >= {"fd_cnn64"}
        assert {row["extractor"] for row in found if row["metric"] == "fd_cnn64"} == {"cnn64"}
    shown = read_tensors(Path("scores/base/samples.safetensors"))
    for key, shape in {
        "euler.0004": (16, 1, 8, 8),
        "frames": (5, 16, 1, 8, 8),
        "strips": (4, 8, 1, 8, 8),
        "nearest": (16, 1, 8, 8),
    }.items():
        assert (tuple(shown[key].shape), shown[key].dtype) == (shape, torch.uint8), key
    page = Path("reports/index.html").read_text()
    assert "1,797 grey images of 8x8" in page
    assert "trained on as latents" in page
    decoded = json.loads(Path("features/accuracy.json").read_text())["decoded_fd_cnn64"]
    assert f"dB), at fd_cnn64 {decoded:.3g}" in page
    data = load_dataset(Path("dataset"))
    extractor = load_extractor(Path("features"))
    vae, order = AutoencoderKL.from_pretrained("vae"), torch.randperm(1797)
    with torch.no_grad():
        back = quantise(vae.decode(data.encoding.units.restored(data.x1)).sample)[order]
    theirs = frechet_distance(stats(extractor(back)), stats(extractor(data.reference)))
    assert decoded == pytest.approx(theirs, rel=0.01)


@pytest.mark.native
def test_a_model_is_scored_from_the_command_line_as_by_the_pipeline(inside, capsys, tmp_path):
    table = tmp_path / "table.csv"
    command = [
        "evaluate",
        "models/base",
        "--against",
        "features",
        "--count",
        "200",
        "--nfe",
        "4",
        "--out",
        str(table),
    ]
    assert main(command) == 0, capsys.readouterr().err
    pipeline = [row for row in rows("scores/base/scores.csv") if (row["solver"], row["nfe"]) == ("euler", "4")]
    wanted = float(next(row["value"] for row in pipeline if row["metric"] == "fd_cnn64"))
    found = float(next(row["value"] for row in rows(table) if row["metric"] == "fd_cnn64"))
    assert found == pytest.approx(wanted, rel=0.02)  # `auto` may be bfloat16 here


@pytest.mark.native
def test_samples_are_written_as_images(inside, capsys, tmp_path):
    for out in ("folder/", "grid.png", "x.npy"):
        assert main(["sample", "models/student", "--count", "5", "--out", f"{tmp_path}/{out}"]) == 0, (
            capsys.readouterr()
        )
    with Image.open(tmp_path / "folder/000004.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")


@pytest.mark.native
def test_a_model_alone_needs_its_autoencoder_named(inside, capsys, tmp_path):
    shutil.copytree("models/student", tmp_path / "alone/student")
    alone = str(tmp_path / "alone/student")
    out = ["--count", "2", "--out", str(tmp_path / "x.npy")]
    assert main(["sample", alone, *out]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "to be decoded by the autoencoder" in error
    assert "--autoencoder" in error
    assert main(["sample", alone, *out, "--autoencoder", "vae"]) == 0
    random_vae(seed=3).save_pretrained(tmp_path / "other")
    assert main(["sample", alone, *out, "--autoencoder", str(tmp_path / "other")]) == 2
    assert f"that in {tmp_path / 'other'} has" in capsys.readouterr().err
    shutil.copytree("vae", tmp_path / "alone/student/autoencoder")
    assert main(["sample", alone, *out]) == 0


def test_a_model_of_images_takes_no_autoencoder(inside, tmp_path):
    write_model(tmp_path / "m", "unet")
    with pytest.raises(ValueError, match="makes its samples itself; expected none, got vae"):
        fmcore.load(tmp_path / "m", autoencoder="vae")


@pytest.mark.native
def test_diffusers_draws_the_same_images(inside, tmp_path):
    assert main(["export", "models/base", str(tmp_path / "d"), "--to", "diffusers", "--nfe", "4"]) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "d", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    model = fmcore.load("models/base")
    noise, label = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    x1 = model.decoder(integrate(model.field("fp32"), noise, uniform_grid(4), EULER, label), "fp32")
    found = pipe(class_labels=label.tolist(), latents=noise, output_type="pt").images
    torch.testing.assert_close(found, (x1 / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
    assert "1 x 8 x 8" in (tmp_path / "d/README.md").read_text()


@pytest.mark.slow
@pytest.mark.native
def test_programs_hold_the_decoder(inside, tmp_path):
    model, how = fmcore.load("models/base"), Sampling(nfe=2)
    for kind in ("torch", "onnx"):
        command = ["export", "models/base", str(tmp_path / kind), "--to", kind, "--nfe", "2"]
        assert main(command) == 0
    noise, label = torch.randn(5, 4, 4, 4), torch.arange(5)
    z = integrate(model.field("fp32"), noise, how.knots(), EULER, label)
    wanted = model.decoder(z, "fp32")
    found = torch.export.load(tmp_path / "torch/model.pt2").module()(noise, label)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    (pixels,) = session.run(None, {"noise": noise.numpy(), "label": label.numpy()})
    ours = quantise(wanted).permute(0, 2, 3, 1).int()
    assert (torch.from_numpy(pixels).int() - ours).abs().max() <= 1


def test_an_encoding_that_was_killed_goes_on(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(inside / "vae", "vae")
    params = latent()
    list(run(params, "check"))
    Path("dataset").rename("whole")

    def bars():
        return (event for event in events_of(params, "intake") if getattr(event, "what", "") == "encode")

    monkeypatch.setattr("flows.stages.intake.SAVED_SECONDS", -1.0)
    events = bars()
    assert next(event for event in events if event.done == 1000)
    events.close()
    assert [event.done for event in bars()] == [1000, 1500, 1797]
    for name in ("data.safetensors", "manifest.json"):
        assert (Path("dataset") / name).read_bytes() == (Path("whole") / name).read_bytes()
    assert not list(Path("work").rglob("raw"))


def test_a_mistake_in_the_images_names_their_key(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(inside / "vae", "vae")
    Path("images").mkdir()
    Path("images/1.png").write_bytes(b"no image")
    data = {"name": "latents", "images": data_of("images"), "autoencoder": "vae", "shape": [4, 4, 4]}
    with pytest.raises(DataError, match=r"^data\.images\.root: 1 of 1 images cannot be read: images/1\.png"):
        list(run(tiny(data=data), "check"))
    with pytest.raises(FileNotFoundError, match=r"^data\.images\.root: no file or folder 'gone'"):
        list(events_of(tiny(data={**data, "images": data_of("gone")}), "look"))
    with pytest.raises(FileNotFoundError, match=r"^data\.autoencoder: no file or folder 'gone'"):
        list(events_of(tiny(data={**data, "autoencoder": "gone"}), "look"))


def test_images_held_out_stay_images(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(inside / "vae", "vae")
    Path("images").mkdir()
    for i, image in enumerate(quantise(Digits().load().x1[:20])):
        Image.fromarray(image[0].numpy()).save(f"images/{i}.png")
    images = data_of("images", held_out=0.25)
    data = {"name": "latents", "images": images, "autoencoder": "vae", "shape": [4, 4, 4]}
    list(run(tiny(data=data, features__extractor="pixels"), "check"))
    found = load_dataset(Path("dataset"))
    assert (len(found.x1), len(found.reference)) == (15, 15)
    assert (tuple(found.held_out.shape), found.held_out.dtype) == ((5, 1, 8, 8), torch.uint8)


def test_without_the_copy_a_stage_says_so(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dataset", "features", "models", "vae"):
        shutil.copytree(inside / name, name)
    shutil.rmtree("dataset/autoencoder")
    with pytest.raises(ArtifactError, match="dataset/autoencoder has none"):
        list(events_of(latent(), "evaluate_base"))


def test_what_is_for_images_alone_is_refused():
    for change, message in (
        ({"flip": True}, "flip: latents are no images, expected false"),
        ({"base__teacher": "x"}, "base.teacher: expected null for latents"),
        ({"couple__dtype": "uint8"}, "couple.dtype: expected float32 or float16 for what is no image"),
        (
            {"evaluate__likelihood": {"samples": 20, "solver": "euler", "nfe": 4, "probes": 0}},
            "evaluate.likelihood: expected null",
        ),
    ):
        with pytest.raises(ParamsError, match=message):
            latent(**change)


def test_the_images_below_are_validated_too():
    data = {"name": "latents", "images": {"name": "moons", "count": 5}, "autoencoder": "vae", "shape": [4, 4, 4]}
    with pytest.raises(ParamsError, match=r"data\.images\.name: expected one of digits, mnist"):
        tiny(data=data)
    images = {"name": "images", "root": "x", "size": 8, "channel": 3}
    with pytest.raises(ParamsError, match=r"data\.images\.channel: unknown key; did you mean channels"):
        tiny(data={**data, "images": images})


def test_an_experiment_s_copy_gets_what_is_named(tmp_path, monkeypatch):
    (tmp_path / "project/data/vae").mkdir(parents=True)
    (tmp_path / "project/data/images").mkdir()
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    bring({"data": {"images": {"root": "data/images"}, "autoencoder": "data/vae"}})
    assert Path("data/vae").is_dir()
    assert Path("data/images").is_dir()


def test_a_changed_autoencoder_is_seen(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(inside / "vae", "vae")
    seen = []
    for _ in range(2):
        list(events_of(latent(), "look"))
        seen.append(Path("data.seen.json").read_bytes())
        Path("vae/config.json").write_text(Path("vae/config.json").read_text() + "\n")
    assert seen[0] != seen[1]


def test_the_registry_s_copy_of_a_model_is_whole(inside, tmp_path):
    keep_model(Path("models/student"), tmp_path / "student")
    assert fmcore.load(tmp_path / "student").decoder.autoencoder.digest == read_autoencoder("vae").digest
    (spec,) = signature(json.loads(Path("models/student/config.json").read_text())).outputs.inputs
    assert (spec.shape, spec.type) == ((-1, 1, 8, 8), np.dtype("uint8"))
