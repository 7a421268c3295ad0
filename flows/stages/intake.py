"""Stage `intake`: the data, read once; every later stage finds it as tensors."""

import shutil
import time
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor

from flows import layout
from flows.events import Event, Events, Note, Progress
from flows.params.schema import Params
from flows.stages.look import changed
from flows.workshop.entry import Stage
from flows.workshop.setup import device_of
from flows.workshop.workspace import SCRATCH, publish, workspace
from fmcore.disk.dataset import DataError, Dataset, save_dataset
from fmcore.disk.files import ArtifactError, flush, mapped, write_json
from fmcore.disk.kept import Blocks, are_whole, keep, kept, with_block
from fmcore.intake.latents import Latents, as_latents, encoded
from fmcore.intake.sets import loading
from fmcore.models.autoencoder import FOLDER, Autoencoder, copy_autoencoder

ENCODED = "encoded.json"  # in the scratch folder, beside the latents
SAVED_SECONDS = 5.0  # from one saving of them to the next


def intake(params: Params, stage: Stage) -> Events:
    """Reads what `data` names and writes it where all stages look; a killed run goes on where it was."""
    with workspace(stage, params) as work:
        source, scratch, out = params.data, work / SCRATCH, work / "out"
        if isinstance(source, Latents):
            autoencoder = source.opened(device_of(params))  # before hours of reading
            images = yield from _told(params, (yield from _read(params, scratch)))
            data = yield from _encoded(images, autoencoder, source.shape, scratch)
            copy_autoencoder(source.autoencoder, out / FOLDER)
        else:
            data = yield from _read(params, scratch)
        yield from _told(params, data)
        save_dataset(out, data, {"name": params.data.name})
        write_json(scratch / "beside.json", data.beside or {})
        publish(out, layout.DATASET)
        publish(scratch / "beside.json", layout.BESIDE)


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
    """The data set of the images' latents, with a bar; they lie in files, from which a killed run goes on."""
    count = len(images.x1)
    raw, latents = (mapped(scratch / name, (count, *shape), torch.float32) for name in ("raw", "latents"))
    blocks = _encoded_so_far(scratch / ENCODED, raw)
    done = blocks[-1][0] if blocks else 0
    yield Progress("encode", done, count, of="data")
    saved = time.monotonic()
    for part in encoded(autoencoder, images.x1[done:]):
        raw[done : done + len(part)] = part
        done += len(part)
        if done == count or time.monotonic() > saved + SAVED_SECONDS:
            flush(scratch / "raw")  # first: the count must never be ahead of the latents on the disk
            blocks = with_block(blocks, raw, done)
            keep(scratch / ENCODED, blocks)
            saved = time.monotonic()
        yield Progress("encode", done, count, of="data")
    return as_latents(images, raw, autoencoder, latents)


def _encoded_so_far(path: Path, raw: Tensor) -> Blocks:
    """The blocks of latents that were made before a kill; none if the latents are not those they were made of."""
    try:
        blocks: Blocks = kept(path) if path.exists() else ()
        return blocks if are_whole(blocks, raw, blocks[-1][0] if blocks else 0) else ()
    except (ArtifactError, TypeError, ValueError, LookupError):
        return ()
