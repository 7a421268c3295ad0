"""Scores from the command line: models and anyone's images, by the protocol of the pipeline."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_variants import points, run, tiny

from fmcore.__main__ import main
from fmcore.data import DataError
from fmcore.features import load_extractor, load_reference
from fmcore.fidelity import FEATURE_METRICS
from fmcore.metrics import frechet_distance, stats
from fmcore.pixels import quantise
from fmcore.scoring import ImageScorer, folder_images
from fmcore.store import load_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the pipeline leaves: features and a base model, of digits and of points; and the digits as files."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        for name, params in (("digits", tiny()), ("points", points())):
            (folder / name).mkdir()
            patch.chdir(folder / name)
            list(run(params, "check", "features", "base"))
        pixels = quantise(tiny().data.load().x1)
    (folder / "pngs").mkdir()
    for i, image in enumerate(pixels[:400]):
        Image.fromarray(image[0].numpy()).save(folder / "pngs" / f"{i:04d}.png")
    return folder


def evaluated(capsys, *arguments):
    status = main(["evaluate", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def table(path):
    with path.open() as file:
        return {row["metric"]: row for row in csv.DictReader(file)}


def test_a_folder_of_images_is_scored_as_it_is(made, tmp_path, capsys):
    names = ",".join(FEATURE_METRICS)
    options = ("--against", made / "digits/features", "--metrics", names, "--out", tmp_path / "t.csv")
    status, out, _ = evaluated(capsys, made / "pngs", *options)
    assert status == 0
    assert out.startswith(f"{made / 'pngs'} against {made / 'digits/features'}: 400 samples (files), seed 0\n")
    found = table(tmp_path / "t.csv")
    extractor = load_extractor(made / "digits/features")
    reference = load_reference(made / "digits/features/reference.safetensors")
    features = extractor(quantise(tiny().data.load().x1)[:400])
    assert float(found["fd_cnn64"]["value"]) == pytest.approx(
        frechet_distance(stats(features), reference.stats), rel=1e-6
    )
    for metric in FEATURE_METRICS.values():
        for key, value in metric(features, reference.features, 0).items():
            assert float(found[key]["value"]) == pytest.approx(value.value, rel=1e-5, abs=1e-9)
    assert float(found["precision"]["value"]) == 1, "each is an image of the data"


def test_a_model_is_scored_on_the_samples_it_draws(made, tmp_path, capsys):
    options = ("--against", made / "digits/features", "--nfe", 4, "--count", 300, "--seed", 5)
    status, out, _ = evaluated(capsys, made / "digits/models/base", *options, "--out", tmp_path / "t.csv")
    assert status == 0
    assert "300 samples (4 NFE of euler), seed 5" in out
    samples = load_model(made / "digits/models/base").sample(300, 4, seed=5)
    extractor = load_extractor(made / "digits/features")
    reference = load_reference(made / "digits/features/reference.safetensors")
    expected = frechet_distance(stats(extractor(quantise(samples))), reference.stats)
    assert float(table(tmp_path / "t.csv")["fd_cnn64"]["value"]) == pytest.approx(expected, rel=1e-5)


def test_points_are_scored(made, tmp_path, capsys):
    options = ("--against", made / "points/features", "--nfe", 8, "--count", 500, "--metrics", "precision_recall")
    status, _, _ = evaluated(capsys, made / "points/models/base", *options, "--out", tmp_path / "t.csv")
    assert status == 0
    assert {"sliced_wasserstein", "energy_distance", "precision", "recall"} == set(table(tmp_path / "t.csv"))


@pytest.mark.parametrize("batch", [1, 7, 100, 150])
def test_scores_do_not_depend_on_the_batches(made, batch):
    extractor = load_extractor(made / "digits/features")
    reference = load_reference(made / "digits/features/reference.safetensors")
    pixels = quantise(tiny().data.load().x1)[:150]
    found = []
    for size in (150, batch):
        scorer = ImageScorer(150, extractor, reference, ["kid"], 0)
        for part in torch.split(pixels, size):
            scorer.add(part)
        found.append(scorer.scores())
    for a, b in zip(*found, strict=True):
        assert a.metric == b.metric
        assert tuple(a.estimate) == pytest.approx(tuple(b.estimate), rel=1e-4, abs=1e-7)


def write(folder, name, shape, dtype=np.uint8):
    Image.fromarray(np.zeros(shape, dtype)).save(folder / name)


def mixed_sizes(folder):
    write(folder, "a.png", (8, 8))
    write(folder, "b.png", (8, 9))


def colour(folder):
    write(folder, "a.png", (8, 8, 3))


def sixteen_bit(folder):
    write(folder, "a.png", (8, 8), np.uint16)


def broken(folder):
    write(folder, "a.png", (8, 8))
    (folder / "b.png").write_bytes(b"not an image")


def few(folder):
    for i in range(3):
        write(folder, f"{i}.png", (8, 8))


EXPECTED = r"expected 8-bit images of shape \(1, 8, 8\) \(channels, height, width\), got "
FOLDERS = {
    "mixed sizes": (mixed_sizes, rf"b.png: {EXPECTED}\(1, 8, 9\) of uint8"),
    "colour against grey": (colour, rf"a.png: {EXPECTED}\(3, 8, 8\) of uint8"),
    "16 bits": (sixteen_bit, rf"a.png: {EXPECTED}\(1, 8, 8\) of "),
    "unreadable": (broken, r"b.png cannot be read"),
    "too few": (few, r"a Frechet distance on 64 features needs more than 64 samples"),
    "none": (lambda folder: None, r"no image in"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_scored_is_one_line(made, tmp_path, capsys, case):
    make, message = FOLDERS[case]
    make(tmp_path)
    status, out, said = evaluated(capsys, tmp_path, "--against", made / "digits/features")
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert re.search(message, said), said


MISTAKES = {
    "nothing there": (("nowhere", "--against", "{}/digits/features"), "no folder 'nowhere'"),
    "images against images without weights": (("{}/pngs", "--against", "{}/pngs"), "--weights is needed"),
    "images against points": (("{}/pngs", "--against", "{}/points/features"), "holds points"),
    "points against images": (
        ("{}/points/models/base", "--against", "{}/digits/features"),
        "makes samples of shape (2,), ",
    ),
    "unknown metric": (
        ("{}/pngs", "--against", "{}/digits/features", "--metrics", "ssim"),
        "--metrics: expected any",
    ),
    "weights that are not there": (("{}/pngs", "--against", "{}/pngs", "--weights", "none.pth"), "none.pth"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(made, capsys, case):
    arguments, message = MISTAKES[case]
    status, out, said = evaluated(capsys, *(part.format(made) for part in arguments))
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert message in said


def test_images_are_read_in_order_of_name_whatever_the_batch(made):
    whole = torch.cat(list(folder_images(made / "pngs", None)))
    assert torch.equal(whole, quantise(tiny().data.load().x1)[:400])
    assert torch.equal(torch.cat(list(folder_images(made / "pngs", (1, 8, 8), batch=33))), whole)
    with pytest.raises(DataError, match=r"0000\.png: expected"):
        list(folder_images(made / "pngs", (3, 8, 8)))
