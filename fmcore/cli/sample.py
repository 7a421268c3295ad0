"""`sample`: a model's samples as files of images, a picture or an array."""

import argparse
import os
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from fmcore.cli.ways import check_out, drawn, loaded, way

if TYPE_CHECKING:
    from fmcore.model import Model


def run(args: argparse.Namespace) -> str:
    """Draws samples into what `--out` names."""
    out = Path(args.out)
    to_folder = args.out.endswith(("/", os.sep)) or out.is_dir() or not out.suffix
    if not to_folder and out.suffix not in (".png", ".safetensors", ".npy", ".csv"):
        raise ValueError(
            f"--out must end in .png or .safetensors, .npy or .csv, or be a folder (end in /), got {args.out}"
        )
    if not to_folder:
        check_out(out)
    import torch

    from fmcore.disk.files import write_tensors
    from fmcore.export.images import write_array, write_pages
    from fmcore.pictures import SPREAD

    model = loaded(args, args.model)
    args.label = _label(args.label, model)
    if to_folder:
        return _sample_folder(args, model, out)
    parts, wrote = drawn(args, model, args.count, args.label, "sample"), str(out)
    if out.suffix == ".png":
        spread = 1 if model.makes_images or len(model.shape) < 3 else SPREAD
        pages = write_pages((part / spread for part in parts), args.count, out)
        wrote = str(out) if len(pages) == 1 else f"{pages[0]} ... {pages[-1].name}"
        return f"{args.count} samples at {args.nfe} NFE -> {wrote}"
    _check_memory(args.count, model)
    x1 = torch.cat(list(parts))
    x1 = x1 if model.units is None else model.units.restored(x1)
    if out.suffix == ".safetensors":
        write_tensors(out, {"x1": x1})
    else:
        write_array(x1, out, () if model.units is None else model.units.names)
    return f"{args.count} samples at {args.nfe} NFE -> {wrote}"


def _check_memory(count: int, model: "Model") -> None:
    """A ValueError if an array of the samples, and its parts, have no room in memory."""
    import psutil

    size, free = 2 * 4 * count * prod(model.sample_shape), psutil.virtual_memory().available
    if size > free:
        raise ValueError(
            f"--count: {count:,} samples of shape {model.sample_shape} take {size / 1e9:.1f} GB as an array, and "
            f"{free / 1e9:.1f} GB are free; expected fewer, or of images a folder as --out"
        )


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
    model.check_steps(way(args))
    made_by = {"model": model.digest, "shape": model.shape, "seed": args.seed, "label": args.label}
    how = {"solver": args.solver, "nfe": args.nfe, "guidance": args.guidance}
    left = claimed(out, made_by | how, args.count)
    if left:
        start = left[0] // model.batch * model.batch  # in the batches of a run that was not stopped
        parts = drawn(args, model, args.count, args.label, "sample", start)
        for _ in write_images(out, parts, start, left):
            pass
    there = args.count - len(left)
    return f"{args.count} samples at {args.nfe} NFE -> {out}" + (f" ({there} were there)" if there else "")
