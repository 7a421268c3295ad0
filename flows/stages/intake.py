"""Stage `intake`: the data, read once; every later stage finds it as tensors."""

import shutil
from collections.abc import Generator
from pathlib import Path

import torch

from flows import layout
from flows.events import Event, Events, Note, Progress
from flows.params.schema import Params
from flows.stages.look import changed
from flows.workshop.entry import Stage
from flows.workshop.setup import device_of
from flows.workshop.workspace import publish, workspace
from fmcore.disk.dataset import DataError, Dataset, save_dataset
from fmcore.disk.files import ArtifactError, flush, is_mapped, mapped, read_json, write_json
from fmcore.intake.latents import Latents, as_latents, encoded
from fmcore.intake.sets import loading
from fmcore.models.autoencoder import FOLDER, Autoencoder, copy_autoencoder

ENCODED = "encoded.json"  # in the scratch folder, beside the latents


def intake(params: Params, stage: Stage) -> Events:
    """Reads what `data` names and writes it where all stages look; one who was killed goes on where he was."""
    with workspace(stage, params) as work:
        source, scratch, out = params.data, work / "scratch", work / "out"
        if isinstance(source, Latents):
            autoencoder = source.opened(device_of(params))  # before hours of reading
            images = yield from _told(params, (yield from _read(params, scratch)))
            data = yield from _encoded(images, autoencoder, source.shape, scratch)
            copy_autoencoder(source.autoencoder, out / FOLDER)
        else:
            data = yield from _read(params, scratch)
        yield from _told(params, data)
        save_dataset(out, data, {"name": params.data.name})
        write_json(work / "beside.json", data.beside or {})
        publish(out, layout.DATASET)
        publish(work / "beside.json", layout.BESIDE)


def _told(params: Params, data: Dataset) -> Generator[Event, None, Dataset]:
    """Says what the data are."""
    classes = "no classes" if data.num_classes is None else f"{data.num_classes} classes"
    yield Note(f"data {params.data.name}: {len(data.x1)} samples of shape {data.shape}, {classes}")
    for line in data.notes:
        yield Note(f"data: {line}")
    return data


def _read(params: Params, scratch: Path) -> Generator[Event, None, Dataset]:
    """The data, of latents their images, with a bar; its files must be those that `look` saw."""
    scratch.mkdir(exist_ok=True)
    source = params.data
    key, steps = "data.", loading(source.images if isinstance(source, Latents) else source, scratch)
    while True:
        try:
            yield Progress("read", *next(steps), of="data")
        except StopIteration as end:
            data: Dataset = end.value
            break
        except DataError as error:
            if isinstance(source, Latents) and str(error).startswith(key):
                raise DataError(f"data.images.{str(error).removeprefix(key)}") from None
            raise
    if names := changed(params.model_dump(mode="json")["data"]):
        shutil.rmtree(scratch)  # so that nothing of it is taken up again
        raise DataError(
            f"data: files changed while they were read, so what was read may be a mixture ({names}); run again "
            "once they no longer change"
        )
    return data


def _encoded(
    images: Dataset, autoencoder: Autoencoder, shape: tuple[int, ...], scratch: Path
) -> Generator[Event, None, Dataset]:
    """The data set of the images' latents, with a bar; they lie in files, and one who was killed goes on there."""
    count, kept = len(images.x1), scratch / ENCODED
    done = _encoded_so_far(scratch, (count, *shape))
    raw, latents = (mapped(scratch / name, (count, *shape), torch.float32) for name in ("raw", "latents"))
    yield Progress("encode", done, count, of="data")
    for part in encoded(autoencoder, images.x1[done:]):
        raw[done : done + len(part)] = part
        done += len(part)
        flush(scratch / "raw")  # first: the count must never be ahead of the latents on the disk
        write_json(kept, {"done": done})
        yield Progress("encode", done, count, of="data")
    return as_latents(images, raw, autoencoder, latents)


def _encoded_so_far(scratch: Path, shape: tuple[int, ...]) -> int:
    """How many images were encoded before a kill; none if their latents are not all there."""
    if not (scratch / ENCODED).exists() or not is_mapped(scratch / "raw", shape, torch.float32):
        return 0
    try:
        done = int(read_json(scratch / ENCODED)["done"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        return 0
    return done if 0 <= done <= shape[0] else 0
