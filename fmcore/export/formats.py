"""A trained model as a folder for other programs: the model, a picture of samples, a card."""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from fmcore.disk.files import ArtifactError, write_file
from fmcore.export import card, program, to_diffusers
from fmcore.model import Model
from fmcore.ode.sampling import Sampling
from fmcore.pictures import SPREAD, sample_picture

PICTURE, PICTURED = "samples.png", {True: 64, False: 2000}  # images, points


class Format(NamedTuple):
    """What a model can be exported to.

    Main arguments:
        check: a ValueError for what it cannot express.
        write: into a folder that is there.
        usage: Markdown for the card, given the folder's name.
        library: as the hub calls it; empty for none.
        packages: optional ones that writing needs.
    """

    check: Callable[[Model, Sampling], None]
    write: Callable[[Model, Sampling, Path], None]
    usage: Callable[[Model, Sampling, str], str]
    library: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "diffusers": Format(to_diffusers.check, to_diffusers.write, to_diffusers.usage, "diffusers"),
    "onnx": Format(
        program.check, program.write_onnx, program.onnx_usage, "onnx", ("onnx", "onnxscript", "onnxruntime")
    ),
    "torch": Format(program.check, program.write_torch, program.torch_usage, ""),
}


def export(
    model: Model, how: Sampling, kind: str, out: Path, *, folder: Path, command: str, scores: Path | None = None
) -> list[str]:
    """Writes a model as a folder, whole or not at all; returns the names of its files.

    Main arguments:
        how: the way of sampling that is exported with it.
        kind: a name of `FORMATS`.
        out: new or empty.

    Other arguments:
        folder: where the model was loaded from; scores and data are looked for beside it.
        command: that does this, for the card.
        scores: a table of scores to show instead.

    Raises:
        ValueError: if the format is unknown or cannot express the model, or this way of sampling it.
        ArtifactError: if `out` holds files, packages are missing, or the scores are of another model.
    """
    if kind not in FORMATS:
        raise ValueError(f"--to: expected one of {', '.join(FORMATS)}, got {kind!r}")
    to, (found, data) = FORMATS[kind], card.beside(folder)
    if out.suffix in (".onnx", ".pt2", ".zip"):
        raise ArtifactError(f"{out}: expected a folder, for the model and its card")
    if out.is_file() or (out.exists() and any(out.iterdir())):
        raise ArtifactError(f"{out} {'is a file' if out.is_file() else 'holds files'}: expected a new folder")
    missing = [name for name in to.packages if find_spec(name) is None]
    if missing:
        raise ArtifactError(f"--to {kind} needs {', '.join(missing)}: pip install {' '.join(to.packages)}")
    model.check_steps(how)
    to.check(model, how)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        to.write(model, how, part)
        figure = _pictured(model, how, part)
        text = card.written(
            model,
            how,
            folder.resolve().name,
            library=to.library,
            use=to.usage(model, how, out.name),
            command=command,
            figure=figure,
            scores=scores or found,
            data=data,
        )
        write_file(part / "README.md", text.encode())
        part.replace(out)  # over an empty folder, too
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def _pictured(model: Model, how: Sampling, folder: Path) -> str:
    """Draws samples."""
    count = PICTURED[len(model.shape) == 3]
    samples = torch.cat(list(model.batches(count, how, precision="fp32")))
    spread = 1 if model.makes_images or samples.ndim < 4 else SPREAD
    sample_picture(samples / spread, folder / PICTURE)
    return PICTURE
