"""`evaluate`: a model, or a folder of anyone's images, scored against data."""

import argparse
import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fmcore.cli.ways import check_out, drawn, loaded

if TYPE_CHECKING:
    from torch import Tensor

    from fmcore.intake.scored_folder import Folder, Reader
    from fmcore.model import Model
    from fmcore.score.extractors import Extractor
    from fmcore.score.reference import Reference
    from fmcore.score.scoring import Score

MODEL_SAMPLES = 10_000  # of a model, unless told


def run(args: argparse.Namespace) -> str:
    """Scores what is named, in a table."""
    if args.out:
        check_out(args.out)
    from fmcore.disk.files import ArtifactError, read_json
    from fmcore.disk.sums import check
    from fmcore.flow.pixels import quantise
    from fmcore.intake.scored_folder import Folder
    from fmcore.score.scoring import METRICS, METRICS_OF_POINTS, ImageScorer, PointScorer, Scorer

    file = args.against / "reference.safetensors"
    if file.is_file():
        check(args.against, "manifest.json")
    is_points = file.is_file() and read_json(args.against / "manifest.json").get("extractor") == "none"
    metrics = _metrics(args.metrics, METRICS_OF_POINTS if is_points else METRICS)
    model = loaded(args, args.target) if (args.target / "config.json").is_file() else None
    if model is None and is_points:
        raise ArtifactError(f"{args.target}: expected a model folder, since {args.against} holds points")
    folder = None if model else Folder(args.target)
    if folder and args.given:
        raise ValueError(f"{', '.join(args.given)}: of a model alone, and {args.target} is a folder of images")
    if folder is None:
        count = args.count or MODEL_SAMPLES
        what = f"{count} samples ({args.nfe} NFE of {args.solver})"
    else:
        total = len(folder.files)
        count = min(args.count or total, total)
        what = f"{count} images" if count == total else f"{count} of {total} images"
    scorer: Scorer
    notes: list[str] = []
    if is_points:
        points = _points(file)
        shape = tuple(points.shape[1:])
        scorer = PointScorer(points, metrics, args.seed)
    else:
        extractor, reference, shape, reader, notes = _reference(args, file, folder)
        extractor = naming(extractor, folder.files) if folder else extractor
        scorer = ImageScorer(count, extractor, reference, metrics, args.seed)
    if folder:
        parts = folder.images(shape, reader, count)
    elif model and model.sample_shape != shape:
        made = model.sample_shape
        raise ArtifactError(f"{args.target} makes samples of shape {made}, {args.against} has {shape}")
    elif model:
        pool = _pool(args, model, notes)
        parts = drawn(args, model, count, None, "evaluate", pool=pool)  # as the pipeline draws
    for part in parts:
        scorer.add(quantise(part) if part.is_floating_point() and not is_points else part)
    scores = scorer.scores()
    if args.out:
        write_scores(args, scores, made_by_model=model is not None)
    lines = [f"{args.target} against {args.against}: {what}, seed {args.seed}"]
    lines += [*(folder.notes(reader) if folder else ()), *notes]
    lines += map(_line, scores)
    if scores[0].metric.startswith(("fd_", "fid_")):
        lines += _floor(args.against / "floor.json", count, scores[0].n_reference)
    return "\n".join(lines)


def _line(score: "Score") -> str:
    """A score with its error and what it was made with."""
    e = score.estimate
    made_with = f"{e.samples} samples, {score.n_reference} real, {score.extractor} {score.digest[:8]}".strip()
    return f"{score.metric:20} {e.value:.6g} ± {e.std:.2g}   ({made_with})"


def _metrics(given: str, offered: Collection[str]) -> list[str]:
    """The names between commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    for name in names:
        if name not in offered:
            raise ValueError(f"--metrics: expected any of {', '.join(offered)}, got {name!r}")
    return names


def _floor(file: Path, count: int, n_reference: int) -> list[str]:
    """A line that says what fresh images of the data would score, if the file says so."""
    from fmcore.disk.files import ArtifactError, read_json

    if not file.is_file() or not (found := read_json(file)):
        return []
    if not isinstance(found.get("coefficient"), float):
        raise ArtifactError(f"{file}: expected a number as its coefficient, got {found.get('coefficient')!r}")
    value = found["coefficient"] * (1 / count + 1 / n_reference)
    return [f"{'data floor':20} {value:.6g}   (what {count} fresh images of the data would score)"]


def _pool(args: argparse.Namespace, model: "Model", notes: list[str]) -> "Tensor | None":
    """The classes of the data, which a conditional model's are drawn from."""
    from fmcore.score.reference import load_labels

    if model.num_classes is None:
        return None
    pool = load_labels(args.against, model.num_classes)
    if pool is None:
        notes.append(f"{args.against} does not say how frequent classes are: they are drawn uniformly")
    return pool


def _points(file: Path) -> "Tensor":
    from fmcore.disk.files import ArtifactError, read_tensors
    from fmcore.disk.sums import check

    check(file.parent, file.name)
    tensors = read_tensors(file)
    x1 = tensors.get("x1")
    if x1 is None or x1.ndim < 2 or not (len(x1) and x1.is_floating_point() and x1.isfinite().all()):
        got = ", ".join(f"{name} {tuple(tensor.shape)} of {tensor.dtype}" for name, tensor in tensors.items())
        raise ArtifactError(f"{file}: expected finite points x1 of shape (N, D), got {got or 'nothing'}")
    return x1


def naming(extractor: "Extractor", files: Sequence[Path]) -> "Extractor":
    """The same, to be called once on all the images of the files in turn, that names one it makes nothing of."""
    names = iter(files)

    def features(pixels: "Tensor") -> "Tensor":
        found = extractor.features(pixels)
        for fine, name in zip(found.isfinite().all(1).tolist(), names, strict=False):
            if not fine:
                raise ValueError(f"{name}: its features by {extractor.metric} are not finite")
        return found

    return replace(extractor, features=features)


def _reference(
    args: argparse.Namespace, file: Path, target: "Folder | None"
) -> tuple["Extractor", "Reference", tuple[int, ...], "Reader", list[str]]:
    """What is compared with: the pipeline's data, or a folder that is read here, in which case there are notes.

    The extractor, the data under it, the shape of its images, and how the files of both sides are read.
    """
    from fmcore.disk.files import read_json
    from fmcore.intake.scored_folder import Folder, folder_images, folder_shape, reader_of
    from fmcore.progress import Progress
    from fmcore.score.extractors import adopt, load_extractor
    from fmcore.score.reference import load_reference, reference_parts

    files = target.files if target else []
    if file.is_file():
        extractor = load_extractor(args.against, args.device, args.weights, args.extractor)
        about = read_json(args.against / "manifest.json")
        shape = tuple(about["image_shape"])
        reader = reader_of(files, shape[0], about.get("reading"))
        return extractor, load_reference(file, extractor.dims), shape, reader, []
    kind, against = args.extractor or "inception-v3-compat", Folder(args.against)
    shape = folder_shape(against.files)
    reader = reader_of([*files, *against.files], shape[0])
    images = folder_images(against.files, shape, reader=reader)
    with TemporaryDirectory() as folder:
        extractor = adopt(kind, Path(folder), shape, images, args.device, args.weights)
    bar, total = Progress("reference", len(against.files), "images"), None
    parts = against.images(shape, reader)
    for part in reference_parts(naming(extractor, against.files), parts, len(against.files)):
        total = part if total is None else total + part
        bar.to(total.stats.count)
    bar.close()
    assert total is not None
    if target:
        target.against = against
    return extractor, total, shape, reader, against.notes(reader)


def write_scores(args: argparse.Namespace, scores: Sequence["Score"], made_by_model: bool) -> None:
    """Writes scores as a table, with all that identifies them in each row."""
    from fmcore.disk.files import write_file

    how = [args.solver, "uniform", args.nfe, args.guidance] if made_by_model else [None] * 4
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = "target,against,solver,grid,nfe,guidance,metric,value,std,n_samples,n_reference"
    writer.writerow([*columns.split(","), "extractor", "extractor_sha256", "seed"])
    for score in scores:
        e, of = score.estimate, (score.n_reference, score.extractor, score.digest, args.seed)
        writer.writerow([args.target, args.against, *how, score.metric, e.value, e.std, e.samples, *of])
    write_file(args.out, text.getvalue().encode())
