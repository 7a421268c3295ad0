"""`python -m fmcore` with `sample MODEL`, `evaluate MODEL_OR_FOLDER` or `export MODEL`: models from the shell."""

import argparse
import csv
import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fmcore.intake.files import Folder, Reader
    from fmcore.model import Model
    from fmcore.ode.sampling import Sampling
    from fmcore.score.extractors import Extractor
    from fmcore.score.reference import Reference
    from fmcore.score.scoring import Score


MODEL_SAMPLES = 10_000  # that `evaluate` draws unless told


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m fmcore", description="Use and score trained models.")
    verbs = top.add_subparsers(dest="verb", required=True)
    sample = verbs.add_parser(
        "sample", help="draw samples into files of images, a picture (a grid, or a plot of points), or an array"
    )
    sample.add_argument("model", type=Path, help="a model folder, e.g. models/student")
    _add_sampling(sample, count=64)
    sample.add_argument(
        "--out",
        required=True,
        help="a folder (a name without a suffix) for a PNG an image, which goes on where it was stopped; a .png "
        "picture, in pages where there are many images; .safetensors with the tensor x1; .npy; .csv for points",
    )
    sample.add_argument("--label", help="the class of all samples, by name or number, for a conditional model")
    evaluate = verbs.add_parser("evaluate", help="score a model, or a folder of anyone's images, against data")
    evaluate.add_argument(
        "target",
        type=Path,
        help="a model folder (a conditional model draws classes as often as the data has them), or a folder of "
        "images: PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF",
    )
    evaluate.add_argument(
        "--against",
        type=Path,
        required=True,
        help="the folder `features` that the pipeline made of its data, or a folder of images",
    )
    evaluate.add_argument(
        "--extractor",
        help="what images are compared by: inception-v3-compat (default), efficientnet-lite0, pixels, random, or "
        "a function of yours, MODULE:FUNCTION; a folder `features` says so itself, but a function must be "
        "named here again",
    )
    evaluate.add_argument("--weights", help="file of Inception weights (default: the one in torch's cache)")
    evaluate.add_argument("--metrics", default="", help="besides, e.g. kid,precision_recall,density_coverage")
    evaluate.add_argument("--out", type=Path, help="a .csv file for the table")
    _add_sampling(evaluate, count=None)
    export = verbs.add_parser("export", help="write a model as a folder for other programs")
    export.add_argument("model", type=Path, help="a model folder, e.g. models/student")
    export.add_argument("out", type=Path, metavar="OUT", help="a new folder for the model, a picture and a card")
    export.add_argument("--to", required=True, metavar="FORMAT", help="diffusers, onnx or torch")
    export.add_argument("--scores", type=Path, help="a table of scores (default: the pipeline's beside the model)")
    _add_way(export)
    return top


def _add_way(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--nfe", type=int, default=1, help="network evaluations a sample (default 1)")
    verb.add_argument("--solver", default="euler", help="euler, midpoint, heun, rk4, ab2, ... (default euler)")
    verb.add_argument("--guidance", type=float, help="scale of guidance; a guided step costs two of --nfe")
    verb.add_argument(
        "--autoencoder",
        type=Path,
        help="folder of the autoencoder that decodes a model's latents (default: that beside the model)",
    )


def _add_sampling(verb: argparse.ArgumentParser, count: int | None) -> None:
    _add_way(verb)
    default = count or f"{MODEL_SAMPLES} of a model, all images of a folder"
    verb.add_argument("--count", type=int, default=count, help=f"samples (default {default})")
    verb.add_argument("--seed", type=int, default=0, help="sample i starts from noise (seed, i) (default 0)")
    verb.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status. A user's mistake is one line, not a traceback."""
    args = parser().parse_args(arguments)
    from fmcore.flow.speed import keep_freed_memory

    keep_freed_memory()
    try:
        if getattr(args, "count", None) is not None and args.count < 1:
            raise ValueError(f"--count must be at least 1, got {args.count}")
        print({"sample": _sample, "evaluate": _evaluate, "export": _export}[args.verb](args))
    except (ValueError, RuntimeError, OSError) as error:
        line = " ".join(part.strip() for part in str(error).splitlines())
        print(f"fmcore {args.verb}: {line}", file=sys.stderr)
        return 2
    return 0


def _loaded(args: argparse.Namespace, folder: Path) -> "Model":
    from fmcore.model import load

    return load(folder, args.device, autoencoder=args.autoencoder)


def _way(args: argparse.Namespace) -> "Sampling":
    from fmcore.flow.fields import Guidance
    from fmcore.flow.times import UniformGrid
    from fmcore.ode.sampling import Sampling

    guidance = None if args.guidance is None else Guidance(args.guidance)
    return Sampling(args.solver, UniformGrid(), args.nfe, guidance)


def _drawn(
    args: argparse.Namespace,
    model: "Model",
    count: int,
    label: int | str | None,
    purpose: str,
    start: int = 0,
    pool: "Tensor | None" = None,
) -> Iterator["Tensor"]:
    """Batches of the model's samples from `start` on, with a bar."""
    from fmcore.progress import Progress

    bar, done = Progress("sample", count, "samples", start), start
    for part in model.batches(
        count, _way(args), seed=args.seed, label=label, purpose=purpose, start=start, pool=pool
    ):
        done += len(part)
        bar.to(done)
        yield part
    bar.close()


def _sample(args: argparse.Namespace) -> str:
    out = Path(args.out)
    to_folder = args.out.endswith(("/", os.sep)) or out.is_dir() or not out.suffix
    if not to_folder and out.suffix not in (".png", ".safetensors", ".npy", ".csv"):
        raise ValueError(
            f"--out must end in .png or .safetensors, .npy or .csv, or be a folder (end in /), got {args.out}"
        )
    import torch

    from fmcore.disk.files import write_tensors
    from fmcore.export.images import write_array, write_pages
    from fmcore.pictures import SPREAD

    model = _loaded(args, args.model)
    args.label = _label(args.label, model)
    if to_folder:
        return _sample_folder(args, model, out)
    parts, wrote = _drawn(args, model, args.count, args.label, "sample"), str(out)
    if out.suffix == ".png":
        spread = 1 if model.makes_images or len(model.shape) < 3 else SPREAD
        pages = write_pages((part / spread for part in parts), args.count, out)
        wrote = str(out) if len(pages) == 1 else f"{pages[0]} ... {pages[-1].name}"
        return f"{args.count} samples at {args.nfe} NFE -> {wrote}"
    x1 = torch.cat(list(parts))
    x1 = x1 if model.units is None else model.units.restored(x1)
    if out.suffix == ".safetensors":
        write_tensors(out, {"x1": x1})
    else:
        write_array(x1, out, () if model.units is None else model.units.names)
    return f"{args.count} samples at {args.nfe} NFE -> {wrote}"


def _label(given: str | None, model: "Model") -> int | str | None:
    """A class as it was given: a name if the model has one like that, else a number."""
    if given is None or given in (model.class_names or ()):
        return given
    return int(given) if given.isdecimal() else given


def _sample_folder(args: argparse.Namespace, model: "Model", out: Path) -> str:
    from fmcore.export.images import are_images, claimed, write_images

    if not are_images(model):
        raise ValueError(
            f"{args.model} makes samples of shape {model.sample_shape}, no grey or RGB images: expected --out to "
            "end in .npy, .safetensors, or for points .csv or .png"
        )
    model.check_steps(_way(args))
    made_by = {"model": model.digest, "shape": model.shape, "seed": args.seed, "label": args.label}
    way = {"solver": args.solver, "nfe": args.nfe, "guidance": args.guidance}
    left = claimed(out, made_by | way, args.count)
    if left:
        start = left[0] // model.batch * model.batch  # in the batches of a run that was not stopped
        parts = _drawn(args, model, args.count, args.label, "sample", start)
        for _ in write_images(out, parts, start, left):
            pass
    there = args.count - len(left)
    return f"{args.count} samples at {args.nfe} NFE -> {out}" + (f" ({there} were there)" if there else "")


def _export(args: argparse.Namespace) -> str:
    from fmcore.export.formats import export
    from fmcore.model import load

    def shown(path: Path) -> str:
        return path.name if path.is_absolute() else str(path)  # a card is for others

    words = ["python", "-m", "fmcore", "export", shown(args.model), shown(args.out), "--to", args.to]
    words += ["--nfe", str(args.nfe), "--solver", args.solver]
    words += [] if args.guidance is None else ["--guidance", f"{args.guidance:g}"]
    words += [] if args.scores is None else ["--scores", shown(args.scores)]
    files = export(
        load(args.model, autoencoder=args.autoencoder),
        _way(args),
        args.to,
        args.out,
        folder=args.model,
        command=shlex.join(words),
        scores=args.scores,
    )
    return f"{args.model} at {args.nfe} NFE of {args.solver} -> {args.out}: {', '.join(files)}"


def _evaluate(args: argparse.Namespace) -> str:
    from fmcore.disk.files import ArtifactError, read_json
    from fmcore.disk.sums import check
    from fmcore.flow.pixels import quantise
    from fmcore.intake.files import Folder
    from fmcore.score.scoring import METRICS, METRICS_OF_POINTS, ImageScorer, PointScorer, Scorer

    file = args.against / "reference.safetensors"
    if file.is_file():
        check(args.against, "manifest.json")
    is_points = file.is_file() and read_json(args.against / "manifest.json").get("extractor") == "none"
    metrics = list(dict.fromkeys(name.strip() for name in args.metrics.split(",") if name.strip()))
    offered = METRICS_OF_POINTS if is_points else METRICS
    for name in metrics:
        if name not in offered:
            raise ValueError(f"--metrics: expected any of {', '.join(offered)}, got {name!r}")
    model = _loaded(args, args.target) if (args.target / "config.json").is_file() else None
    if model is None and is_points:
        raise ArtifactError(f"{args.target}: expected a model folder, since {args.against} holds points")
    folder = None if model else Folder(args.target)
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
        extractor = _naming(extractor, folder.files) if folder else extractor
        scorer = ImageScorer(count, extractor, reference, metrics, args.seed)
    if folder:
        parts = folder.images(shape, reader, count)
    elif model and model.sample_shape != shape:
        made = model.sample_shape
        raise ArtifactError(f"{args.target} makes samples of shape {made}, {args.against} has {shape}")
    elif model:
        parts = _drawn(
            args, model, count, None, "evaluate", pool=_pool(args, model, notes)
        )  # as the pipeline draws
    for part in parts:
        scorer.add(quantise(part) if part.is_floating_point() and not is_points else part)
    scores = scorer.scores()
    if args.out:
        _write(args, scores, made_by_model=model is not None)
    lines = [f"{args.target} against {args.against}: {what}, seed {args.seed}"]
    lines += [*(folder.notes(reader) if folder else ()), *notes]
    for score in scores:
        e = score.estimate
        made_with = f"{e.samples} samples, {score.n_reference} real, {score.extractor} {score.digest[:8]}".strip()
        lines.append(f"{score.metric:20} {e.value:.6g} ± {e.std:.2g}   ({made_with})")
    if scores[0].metric.startswith(("fd_", "fid_")):
        lines += _floor(args.against / "floor.json", count, scores[0].n_reference)
    return "\n".join(lines)


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


def _naming(extractor: "Extractor", files: Sequence[Path]) -> "Extractor":
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
    from fmcore.intake.files import Folder, folder_images, folder_shape, reader_of
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
    for part in reference_parts(_naming(extractor, against.files), parts, len(against.files)):
        total = part if total is None else total + part
        bar.to(total.stats.count)
    bar.close()
    assert total is not None
    if target:
        target.against = against
    return extractor, total, shape, reader, against.notes(reader)


def _write(args: argparse.Namespace, scores: Sequence["Score"], made_by_model: bool) -> None:
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
