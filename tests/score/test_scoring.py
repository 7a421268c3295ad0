"""Scores from the command line: models and anyone's images, by the protocol of the pipeline."""

import csv
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.metric_isc import isc_features_to_metric

from fmcore.cli import _write, main, parser
from fmcore.disk.dataset import DataError
from fmcore.disk.files import read_tensors, write_json, write_tensors
from fmcore.flow.pixels import quantise
from fmcore.intake.files import folder_files, folder_images
from fmcore.intake.images import image_paths
from fmcore.model import load as load_model
from fmcore.score.estimates import Estimate, group_sizes
from fmcore.score.extractors import Extractor, load_extractor
from fmcore.score.fidelity import FEATURE_METRICS
from fmcore.score.frechet import frechet_distance, frechet_estimate, frechet_infinity, stats
from fmcore.score.reference import Reference, load_reference, reference_parts
from fmcore.score.scoring import METRICS, ImageScorer, PointScorer, Score
from stage_runs import points, run, tiny


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
    features = extractor(torch.cat(list(folder_images(folder_files(made / "pngs"), None))))
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
    assert evaluated(capsys, target, *options, "--nfe", 4, "--solver", "heun", "--count", 200)[0] == 0
    row |= {"target": str(target), "solver": "heun", "grid": "uniform", "nfe": "4", "n_samples": "200"}
    assert row.items() <= table(out)["fd_cnn64"].items()
    assert table(out)["fd_cnn64"].keys() - row.keys() == {"value", "std"}


def test_the_table_says_which_guidance(tmp_path):
    args = parser().parse_args(["evaluate", "m", "--against", "f", "--guidance", "1.5"])
    args.out = tmp_path / "t.csv"
    _write(args, [Score("fd_stub", Estimate(1.0, 0.1, 9), 8, "stub", "abc")], made_by_model=True)
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
    monkeypatch.setattr("fmcore.cli.MODEL_SAMPLES", 150)
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


def stub(name="stub", device="cpu"):
    """Features that are the first pixels, and class scores that are the first features."""

    def features(pixels):
        return pixels.to(device).flatten(1)[:, :4].float() / 100

    return Extractor(name, 4, "abc", features, lambda f: 3 * f[:, :3])


def pictures(count, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 3, 3), generator=g, dtype=torch.uint8).to(device)


def reference(count=500):
    found = stub()(pictures(count, 1))
    return Reference(stats(found), found)


def scored(pixels, metrics=(), extractor=None, batch=64):
    scorer = ImageScorer(len(pixels), extractor or stub(), reference(), metrics)
    for part in torch.split(pixels, batch):
        scorer.add(part)
    return scorer


def test_every_metric_by_name():
    pixels = pictures(317)
    found = {score.metric: score for score in scored(pixels, METRICS).scores()}
    f, real = stub()(pixels), reference()
    groups = [stats(part) for part in torch.split(f, group_sizes(317))]
    assert found["fd_stub"].estimate[:3] == pytest.approx(frechet_estimate(groups, real.stats)[:3])
    assert found["fd_stub_inf"].estimate[:3] == pytest.approx(frechet_infinity(groups, real.stats)[:3])
    theirs = isc_features_to_metric(3 * f[:, :3], splits=10, shuffle=False)
    assert found["classifier_score"].estimate.value == pytest.approx(theirs["inception_score_mean"])
    for metric in FEATURE_METRICS.values():
        for key, value in metric(f, real.features, 0).items():
            assert found.pop(key).estimate == value
    assert list(found) == ["fd_stub", "fd_stub_inf", "classifier_score"]
    assert [score.n_reference for score in found.values()] == [500, 500, 0]
    assert {score[3:] for score in found.values()} == {("stub", "abc")}


@pytest.mark.parametrize("batch", [1, 7, 64, 317])
def test_no_metric_depends_on_the_batches(batch):
    for a, b in zip(*(scored(pictures(317), METRICS, batch=size).scores() for size in (317, batch)), strict=True):
        assert a.estimate[:3] == pytest.approx(b.estimate[:3], rel=1e-9)
        assert a.estimate.left_out == pytest.approx(b.estimate.left_out, rel=1e-9)


@pytest.mark.parametrize("name", ["inception", "inception_0123abcd"])
def test_only_inception_s_classes_make_an_inception_score(name):
    names = [score.metric for score in scored(pictures(200), ["inception_score"], stub(name)).scores()]
    assert names == [f"fd_{name}", "inception_score"]


def held(scorer):
    """How many numbers a scorer holds."""
    tensors = [*scorer.kept, scorer.wrong, scorer.first_wrong]
    for sums in (*scorer.groups, *scorer.classes):
        tensors += [part for part in vars(sums).values() if torch.is_tensor(part)]
    return sum(tensor.untyped_storage().size() // tensor.element_size() for tensor in tensors)


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr("fmcore.score.scoring.KEPT", 50)
    assert held(scored(pictures(100), METRICS)) == held(scored(pictures(10_000), METRICS))
    assert held(scored(pictures(100), METRICS, batch=7)) == held(scored(pictures(100), METRICS))
    assert scored(pictures(100), ["frechet_infinity", "inception_score"]).kept == []


def test_metrics_of_neighbours_look_at_the_first_features(monkeypatch):
    monkeypatch.setattr("fmcore.score.scoring.KEPT", 50)
    found = {score.metric: score.estimate for score in scored(pictures(200), ["kid"]).scores()}
    assert found["kid"] == FEATURE_METRICS["kid"](stub()(pictures(200)[:50]), reference().features, 0)["kid"]


def test_features_that_are_not_finite_are_counted_in_one_line():
    def features(pixels):
        found = stub()(pixels)
        return found.where(pixels[:, 0, 0, :1] != 7, torch.nan)

    pixels = pictures(300).clamp(min=8)
    pixels[[130, 131, 290], 0, 0, 0] = 7
    message = r"^fd_bad: the features of 3 of 300 images are not finite, the first is image 130$"
    for batch in (1, 64, 300):
        with pytest.raises(ValueError, match=message):
            scored(pixels, METRICS, Extractor("bad", 4, "", features, lambda f: f), batch).scores()


def test_a_scorer_refuses_what_it_cannot_score():
    blind = Extractor("rot64", 4, "", stub().features)
    message = r"^metrics: inception_score needs class scores, which fd_rot64 has none of$"
    with pytest.raises(ValueError, match=message):
        scored(pictures(10), ["inception_score"], blind)
    assert [score.metric for score in scored(pictures(100), (), blind).scores()] == ["fd_rot64"]
    scorer = ImageScorer(100, stub(), reference())
    scorer.add(pictures(90))
    with pytest.raises(ValueError, match=r"^expected 100 images to score, got 90$"):
        scorer.scores()
    with pytest.raises(ValueError, match=r"^expected 100 images to score, got 101 or more$"):
        scorer.add(pictures(11))


def test_points_that_cannot_be_scored_are_one_line():
    with pytest.raises(ValueError, match=r"^metrics: expected any of kid, .* for points, got 'inception_score'$"):
        PointScorer(torch.zeros(100, 2), ["kid", "inception_score"])
    scorer = PointScorer(torch.zeros(100, 2))
    for _ in range(2):
        scorer.add(torch.tensor([[0.0, 1.0], [torch.inf, 0.0]]).repeat(20, 1))
    with pytest.raises(ValueError, match=r"^40 of 80 points are not finite, the first is point 1$"):
        scorer.scores()


@pytest.mark.gpu
def test_adding_images_never_waits_for_the_device():
    found = []
    for device in ("cpu", "cuda"):
        scorer = ImageScorer(300, stub(device=device), reference(), METRICS)
        warm = ImageScorer(300, stub(device=device), reference(), METRICS)
        parts = torch.split(pictures(300, device=device), 64)
        warm.add(parts[0])  # the first matrix product sets up its library
        torch.cuda.set_sync_debug_mode("error")
        try:
            for part in parts:
                scorer.add(part)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(scorer.scores())
    for a, b in zip(*found, strict=True):
        assert a.estimate[:3] == pytest.approx(b.estimate[:3], rel=1e-4, abs=1e-7)


def write(folder, name, shape, dtype=np.uint8):
    Image.fromarray(np.zeros(shape, dtype)).save(folder / name)


def mixed_sizes(folder):
    write(folder, "a.png", (8, 8))
    write(folder, "b.png", (8, 9))


def colour(folder):
    write(folder, "a.png", (8, 8, 3))


def broken(folder):
    write(folder, "a.png", (8, 8))
    (folder / "b.png").write_bytes(b"not an image")


def few(folder):
    for i in range(3):
        write(folder, f"{i}.png", (8, 8))


def of_mode(mode, suffix):
    return lambda folder: Image.new(mode, (8, 8)).save(folder / f"a.{suffix}")


def deep_colour(folder):
    """16 bits a channel, which PIL opens as 8 and cannot write."""
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(8 * (1 + 8 * 6))), b"IEND": b""}
    whole = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        whole += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (folder / "a.png").write_bytes(whole)


EXPECTED = r"expected images of shape \(1, 8, 8\) \(channels, height, width\), got "
MODE = "expected an image in 8-bit grey or RGB, got mode "
FOLDERS = {
    "mixed sizes": (mixed_sizes, rf"b.png: {EXPECTED}\(1, 8, 9\)"),
    "colour against grey": (colour, rf"a.png: {EXPECTED}\(3, 8, 8\)"),
    "palette": (of_mode("P", "png"), f"a.png: {MODE}P$"),
    "black and white": (of_mode("1", "png"), f"a.png: {MODE}1$"),
    "grey with transparency": (of_mode("LA", "png"), f"a.png: {MODE}LA$"),
    "RGB with transparency": (of_mode("RGBA", "webp"), f"a.webp: {MODE}RGBA$"),
    "for print": (of_mode("CMYK", "jpg"), f"a.jpg: {MODE}CMYK$"),
    "16 bits": (of_mode("I;16", "png"), f"a.png: {MODE}I;16 of 16 bits$"),
    "16 bits of RGB": (deep_colour, f"a.png: {MODE}RGB of 16 bits$"),
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
    files = folder_files(made / "pngs")
    assert files == folder_files(made / "pngs") != sorted(files) == image_paths(made / "pngs")
    index = torch.tensor([int(path.stem) for path in files])
    assert 0.3 < float((index[:200] < 200).float().mean()) < 0.7
    whole = torch.cat(list(folder_images(files, None)))
    assert torch.equal(whole, quantise(tiny().data.load().x1)[:400][index])
    assert torch.equal(torch.cat(list(folder_images(files, (1, 8, 8), batch=33))), whole)
    with pytest.raises(DataError, match=rf"{files[0].name}: expected"):
        list(folder_images(files, (3, 8, 8)))


def test_the_folder_compared_with_is_taken_in_that_order_too(made, tmp_path, monkeypatch, capsys):
    """Its kept features are not those of its first classes."""
    seen = []

    def parts(extractor, batches, count):
        seen.extend(batches)
        return reference_parts(extractor, seen, count)

    monkeypatch.setattr("fmcore.score.reference.reference_parts", parts)
    options = ("--against", made / "pngs", "--extractor", "pixels", "--count", 100)
    assert evaluated(capsys, made / "pngs", *options)[0] == 0
    wanted = torch.cat(list(folder_images(folder_files(made / "pngs"), None)))
    assert torch.equal(torch.cat(seen), wanted)


# --- features made by somebody else -------------------------------------------------------------------------


FOREIGN_POINTS = {
    "no points": ({"x": torch.zeros(9, 2)}, "x (9, 2) of torch.float32"),
    "no tensors": ({}, "nothing"),
    "flat": ({"x1": torch.zeros(9)}, "x1 (9,) of torch.float32"),
    "one number": ({"x1": torch.zeros(())}, "x1 () of torch.float32"),
    "in space": ({"x1": torch.zeros(9, 3)}, "x1 (9, 3) of torch.float32"),
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
    assert f"reference.safetensors: expected finite points x1 of shape (N, 2), got {got}\n" in said


def test_a_reference_that_does_not_fit_its_extractor_is_one_line(made, tmp_path, capsys):
    write_json(tmp_path / "manifest.json", {"extractor": "pixels", "sha256": "", "image_shape": [1, 8, 7]})
    write_tensors(tmp_path / "reference.safetensors", read_tensors(made / "digits/features/reference.safetensors"))
    status, out, said = evaluated(capsys, made / "pngs", "--against", tmp_path)
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert (
        "reference.safetensors: expected for tensor 'features' (2053, 56) of torch.float32, got (1797, 64)" in said
    )
