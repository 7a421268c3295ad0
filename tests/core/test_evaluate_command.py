"""Scores from the command line: models and anyone's images, by the protocol of the pipeline."""

import csv
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from fmcore.cli import main, parser
from fmcore.cli.evaluate import write_scores
from fmcore.disk.dataset import DataError
from fmcore.disk.files import read_tensors, write_json, write_tensors
from fmcore.flow.pixels import quantise
from fmcore.intake.images import Images
from fmcore.intake.scored_folder import Folder, folder_images, reader_of
from fmcore.intake.walk import found
from fmcore.model import load as load_model
from fmcore.score.estimates import Estimate, group_sizes
from fmcore.score.extractors import load_extractor
from fmcore.score.fidelity import FEATURE_METRICS
from fmcore.score.frechet import frechet_distance, frechet_estimate, stats
from fmcore.score.reference import load_reference, reference_parts
from fmcore.score.scoring import ImageScorer, Score
from stage_runs import data_of, notes, points, run, tiny


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
    assert out.startswith(f"{made / 'pngs'} against {made / 'digits/features'}: 400 images, seed 0\n")
    found = table(tmp_path / "t.csv")
    extractor = load_extractor(made / "digits/features")
    reference = load_reference(made / "digits/features/reference.safetensors")
    features = extractor(torch.cat(list(folder_images(Folder(made / "pngs").files, None))))
    assert float(found["fd_cnn64"]["value"]) == pytest.approx(
        frechet_distance(stats(features), reference.stats), rel=1e-6
    )
    for metric in FEATURE_METRICS.values():
        for key, value in metric(features, reference.kept, 0).items():
            assert float(found[key]["value"]) == pytest.approx(value.value, rel=1e-5, abs=1e-9)
    assert float(found["precision"]["value"]) == 1, "each is an image of the data"


@pytest.mark.precisions
def test_a_model_is_scored_on_the_samples_it_draws(made, tmp_path, capsys):
    options = ("--against", made / "digits/features", "--nfe", 4, "--count", 300, "--seed", 5)
    status, out, _ = evaluated(capsys, made / "digits/models/base", *options, "--out", tmp_path / "t.csv")
    assert status == 0
    assert "300 samples (4 NFE of euler), seed 5" in out
    samples = torch.cat(list(load_model(made / "digits/models/base").batches(300, 4, seed=5, purpose="evaluate")))
    extractor = load_extractor(made / "digits/features")
    reference = load_reference(made / "digits/features/reference.safetensors")
    expected = frechet_distance(stats(extractor(quantise(samples))), reference.stats)
    assert float(table(tmp_path / "t.csv")["fd_cnn64"]["value"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.precisions
def test_a_row_of_the_table_carries_what_made_it(made, tmp_path, capsys):
    against, out = made / "digits/features", tmp_path / "new/t.csv"
    common = {"against": str(against), "extractor": "cnn64", "seed": "3", "n_reference": "1797"}
    common["extractor_sha256"] = load_extractor(against).digest
    nothing = dict.fromkeys(("solver", "grid", "nfe", "guidance"), "")
    options = ("--against", against, "--seed", 3, "--out", out)
    assert evaluated(capsys, made / "pngs", *options)[0] == 0
    row = {**common, **nothing, "target": str(made / "pngs"), "metric": "fd_cnn64", "n_samples": "400"}
    assert row.items() <= table(out)["fd_cnn64"].items()
    target = made / "digits/models/base"
    assert evaluated(capsys, target, *options, "--nfe", 3, "--solver", "heun", "--count", 200)[0] == 0
    row |= {"target": str(target), "solver": "heun", "grid": "uniform", "nfe": "3", "n_samples": "200"}
    assert row.items() <= table(out)["fd_cnn64"].items()
    assert table(out)["fd_cnn64"].keys() - row.keys() == {"value", "std"}


def test_the_table_says_which_guidance(tmp_path):
    args = parser().parse_args(["evaluate", "m", "--against", "f", "--guidance", "1.5"])
    args.out = tmp_path / "t.csv"
    write_scores(args, [Score("fd_stub", Estimate(1.0, 0.1, 9), 8, "stub", "abc")], made_by_model=True)
    assert table(args.out)["fd_stub"]["guidance"] == "1.5"


def test_a_folder_sorted_by_class_scores_as_one_that_is_not(made, tmp_path, capsys):
    """Error bars, kernels and a part of the images would each see some classes only, were they taken in order."""
    data = tiny().data.load()
    pixels, label = quantise(data.x1[:897]), data.label[:897]
    (tmp_path / "sorted").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / "sorted" / f"{int(label[i])}-{i:04d}.png")
    options = ("--against", made / "digits/features", "--out", tmp_path / "t.csv")
    status, out, _ = evaluated(capsys, tmp_path / "sorted", *options)
    assert status == 0
    assert ": 897 images, seed 0\n" in out
    whole = table(tmp_path / "t.csv")["fd_cnn64"]
    status, out, _ = evaluated(capsys, tmp_path / "sorted", *options, "--count", 400)
    assert status == 0
    assert ": 400 of 897 images, seed 0\n" in out
    part = table(tmp_path / "t.csv")["fd_cnn64"]
    extractor = load_extractor(made / "digits/features")
    real = load_reference(made / "digits/features/reference.safetensors").stats
    features = extractor(pixels)
    by_class = frechet_estimate(
        [stats(x) for x in torch.split(features[label.sort().indices], group_sizes(897))], real
    )
    at_random = frechet_estimate([stats(x) for x in torch.split(features, group_sizes(897))], real)
    assert by_class.std > 3 * at_random.std
    assert float(whole["std"]) == pytest.approx(at_random.std, rel=0.7)
    in_order = frechet_distance(stats(features[label.sort().indices[:400]]), real)
    assert in_order > 3 * float(part["value"])


@pytest.mark.precisions
def test_all_of_a_folder_are_taken_however_many(made, tmp_path, monkeypatch, capsys):
    """For models the number stays; for folders there is none."""
    monkeypatch.setattr("fmcore.cli.evaluate.MODEL_SAMPLES", 150)
    against = ("--against", made / "digits/features")
    assert ": 400 images, " in evaluated(capsys, made / "pngs", *against)[1]
    assert ": 400 images, " in evaluated(capsys, made / "pngs", *against, "--count", 500)[1]
    assert ": 150 samples (1 NFE of euler)" in evaluated(capsys, made / "digits/models/base", *against)[1]


@pytest.mark.precisions
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
        # Not the metrics of neighbours: of images that are the data's own, the last bit decides who is in a ball.
        scorer = ImageScorer(150, extractor, reference, ["kid", "frechet_infinity", "inception_score"], 0)
        for part in torch.split(pixels, size):
            scorer.add(part)
        found.append(scorer.scores())
    for a, b in zip(*found, strict=True):
        assert a.metric == b.metric
        assert a.estimate[:3] == pytest.approx(b.estimate[:3], rel=1e-4, abs=1e-7)
        assert a.estimate.left_out == pytest.approx(b.estimate.left_out, rel=1e-4, abs=1e-7)


def write(folder, name, shape, dtype=np.uint8):
    Image.fromarray(np.zeros(shape, dtype)).save(folder / name)


def mixed_sizes(folder):
    write(folder, "a.png", (8, 8))
    write(folder, "b.png", (8, 9))


def broken(folder):
    write(folder, "a.png", (8, 8))
    (folder / "b.png").write_bytes(b"not an image")


def few(folder):
    for i in range(3):
        write(folder, f"{i}.png", (8, 8))


def channels(folder):
    tifffile.imwrite(folder / "a.tif", np.zeros((8, 8, 5), np.uint8), planarconfig="contig")


def signed(folder):
    tifffile.imwrite(folder / "a.tif", np.zeros((8, 8), np.int16))


def pipe(folder):
    write(folder, "a.png", (8, 8))
    os.mkfifo(folder / "b.png")


def unlike(folder):
    for name in ("test", "cat"):
        (folder / name).mkdir()
        write(folder / name, "a.png", (8, 8))


EXPECTED = r"expected images of shape \(1, 8, 8\) \(channels, height, width\), got "
FOLDERS = {
    "mixed sizes": (mixed_sizes, rf"b.png: {EXPECTED}\(1, 8, 9\)"),
    "many channels": (channels, "a.tif cannot be read: has 5 channels, expected 1$"),
    "no range": (signed, "a.tif cannot be read: has values of 32 bits or signed ones"),
    "unreadable": (broken, r"b.png cannot be read"),
    "a pipe": (pipe, r"b\.png: no file, but a pipe"),
    "a split, or classes": (unlike, r"holds cat/, test/: parts of a split, or classes\?"),
    "too few": (few, r"a Frechet distance on 64 features needs more than 64 samples"),
    "none": (lambda folder: None, r"no image in"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_scored_is_one_line(made, tmp_path, capsys, case):
    make, message = FOLDERS[case]
    make(tmp_path)
    status, out, said = evaluated(capsys, tmp_path, "--against", made / "digits/features")
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert re.search(message, said.strip()), said


MISTAKES = {
    "nothing there": (("nowhere", "--against", "{}/digits/features"), "no folder 'nowhere'"),
    "images against images without weights": (("{}/pngs", "--against", "{}/pngs"), "no Inception weights at"),
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
def test_a_mistake_is_one_line(made, tmp_path, monkeypatch, capsys, case):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments, message = MISTAKES[case]
    status, out, said = evaluated(capsys, *(part.format(made) for part in arguments))
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert message in said


KINDS = [("L", "png"), ("L", "bmp"), ("L", "jpg"), ("RGB", "png"), ("RGB", "bmp"), ("RGB", "jpg"), ("RGB", "webp")]


@pytest.mark.parametrize(("mode", "suffix"), KINDS)
def test_grey_and_rgb_are_read_as_they_are(tmp_path, mode, suffix):
    Image.new(mode, (160, 16), 7 if mode == "L" else (7, 7, 7)).save(tmp_path / f"a.{suffix}")
    (found,) = folder_images([tmp_path / f"a.{suffix}"], None)
    assert torch.equal(found, torch.full((1, len(mode), 16, 160), 7, dtype=torch.uint8))


def test_images_are_read_in_a_fixed_random_order_whatever_the_batch(made):
    files = Folder(made / "pngs").files
    assert files == Folder(made / "pngs").files != sorted(files) == list(found(made / "pngs").images)
    index = torch.tensor([int(path.stem) for path in files])
    assert 0.3 < float((index[:200] < 200).float().mean()) < 0.7
    whole = torch.cat(list(folder_images(files, None)))
    assert torch.equal(whole, quantise(tiny().data.load().x1)[:400][index])
    assert torch.equal(torch.cat(list(folder_images(files, (1, 8, 8), batch=33))), whole)
    with pytest.raises(DataError, match=rf"{files[0].name}: expected"):
        list(folder_images(files, (1, 8, 9)))


def test_a_folder_is_read_as_the_data_was(tmp_path):
    """Transparent, deep, grey and in colour, in classes and with a split: the same pixels on both sides."""
    random = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / ("test" if i > 9 else f"train/{i % 2}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.webp", lossless=True)
        tifffile.imwrite(folder / f"{i}.tif", random.integers(0, 4096, (8, 8)).astype(np.uint16))
    for channels in (1, 3):
        data = Images(root=str(tmp_path / "train"), size=8, channels=channels, background="#336699").load()
        folder = Folder(tmp_path)
        assert len(folder.files) == len(data.x1) == 30
        reader = reader_of(folder.files, channels, data.about)
        read = torch.cat(list(folder.images((channels, 8, 8), reader)))
        order = {path: i for i, path in enumerate(found(tmp_path / "train").images)}
        assert torch.equal(read, data.x1[[order[path] for path in folder.files]])
        said = [line.partition(": ")[2] for line in folder.notes(reader)]
        part = "train/ is trained on; left out: test/ (6 images)"
        assert {*said} == {*data.notes, part} - {"classes: 0 (15), 1 (15)"}


def test_the_data_against_itself_is_at_no_distance(tmp_path, monkeypatch, capsys):
    """Read by the pipeline, and read here with the background and the range that its features remember."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for i in range(80):
        Path("raw").mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(f"raw/{i}.png")
        tifffile.imwrite(f"raw/{i}.tif", random.integers(0, 4096, (8, 8)).astype(np.uint16))
    data = data_of("raw", background="#804020", levels=5000)
    said = notes(run(tiny(data=data, features__extractor="pixels"), "check", "features"))
    assert "data: 80 of 160 are transparent in part and lie on #804020" in said
    assert "data: 80 of 160 have 16 bits a channel, of which 5000 is white" in said
    status, out, _ = evaluated(capsys, "raw", "--against", "features")
    assert status == 0
    assert "raw: 80 of 160 are transparent in part and lie on #804020" in out
    assert abs(float(re.search(r"^fd_\w+ +([^ ]+)", out, re.MULTILINE).group(1))) < 1e-9


def test_the_shape_is_in_colour_if_any_image_is(tmp_path):
    for name, shape in {"a": (8, 8), "b": (8, 8), "c": (8, 8, 3)}.items():
        write(tmp_path, f"{name}.png", shape)
    (read,) = folder_images(Folder(tmp_path).files, None)
    assert read.shape == (3, 3, 8, 8)


def test_hidden_copies_are_not_scored_and_no_suffix_is_overlooked(made, tmp_path, capsys):
    (tmp_path / ".thumbnails").mkdir()
    for i, path in enumerate(sorted((made / "pngs").iterdir())):
        shutil.copy(path, tmp_path / ".thumbnails")
        Image.open(path).save(tmp_path / f"{i}.{('png', 'tif')[i % 2]}")
    (tmp_path / "notes.txt").write_text("")
    whole = evaluated(capsys, made / "pngs", "--against", made / "digits/features")[1].splitlines()
    status, out, _ = evaluated(capsys, tmp_path, "--against", made / "digits/features")
    lines = out.splitlines()
    assert status == 0
    assert "400 images, seed 0" in lines[0]
    assert lines[1:3] == [
        f"{tmp_path}: left out, as hidden or left by programs: 1 .thumbnails/",
        f"{tmp_path}: left out, as no images by their suffix: 1 .txt",
    ]
    value = [float(re.match(r"fd_cnn64 +([^ ]+)", line).group(1)) for line in (whole[1], lines[3])]
    assert value[0] == pytest.approx(value[1], rel=1e-4)


def test_the_folder_compared_with_is_taken_in_that_order_too(made, tmp_path, monkeypatch, capsys):
    """Its kept features are not those of its first classes."""
    seen = []

    def parts(extractor, batches, count):
        seen.extend(batches)
        return reference_parts(extractor, seen, count)

    monkeypatch.setattr("fmcore.score.reference.reference_parts", parts)
    options = ("--against", made / "pngs", "--extractor", "pixels", "--count", 100)
    assert evaluated(capsys, made / "pngs", *options)[0] == 0
    wanted = torch.cat(list(folder_images(Folder(made / "pngs").files, None)))
    assert torch.equal(torch.cat(seen), wanted)


# --- features made by somebody else -------------------------------------------------------------------------

FOREIGN_POINTS = {
    "no points": ({"x": torch.zeros(9, 2)}, "x (9, 2) of torch.float32"),
    "no tensors": ({}, "nothing"),
    "flat": ({"x1": torch.zeros(9)}, "x1 (9,) of torch.float32"),
    "one number": ({"x1": torch.zeros(())}, "x1 () of torch.float32"),
    "whole numbers": ({"x1": torch.zeros(9, 2, dtype=torch.int64)}, "x1 (9, 2) of torch.int64"),
    "none": ({"x1": torch.zeros(0, 2)}, "x1 (0, 2) of torch.float32"),
    "not finite": ({"x1": torch.full((9, 2), torch.nan)}, "x1 (9, 2) of torch.float32"),
}


@pytest.mark.parametrize("case", FOREIGN_POINTS)
def test_foreign_points_are_one_line(made, tmp_path, capsys, case):
    tensors, got = FOREIGN_POINTS[case]
    write_json(tmp_path / "manifest.json", {"extractor": "none"})
    write_tensors(tmp_path / "reference.safetensors", tensors)
    status, out, said = evaluated(capsys, made / "points/models/base", "--against", tmp_path)
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert f"reference.safetensors: expected finite points x1 of shape (N, D), got {got}\n" in said


def test_a_reference_that_does_not_fit_its_extractor_is_one_line(made, tmp_path, capsys):
    write_json(tmp_path / "manifest.json", {"extractor": "pixels", "sha256": "", "image_shape": [1, 8, 7]})
    write_tensors(tmp_path / "reference.safetensors", read_tensors(made / "digits/features/reference.safetensors"))
    status, out, said = evaluated(capsys, made / "pngs", "--against", tmp_path)
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert (
        "reference.safetensors: expected for tensor 'features' (2053, 56) of torch.float32, got (1797, 64)" in said
    )
