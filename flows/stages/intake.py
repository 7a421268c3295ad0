"""Stage `intake`: the data, read once; every later stage finds it as tensors."""

import shutil
from collections.abc import Generator
from pathlib import Path

from flows import layout
from flows.events import Event, Events, Note, Progress
from flows.params.schema import Params
from flows.stages.look import changed
from flows.workshop.entry import Stage
from flows.workshop.workspace import publish, workspace
from fmcore.disk.dataset import DataError, Dataset, save_dataset
from fmcore.disk.files import write_json
from fmcore.intake.sets import loading


def intake(params: Params, stage: Stage) -> Events:
    """Reads what `data` names and writes it where all stages look; one who was killed goes on where he was."""
    with workspace(stage, params) as work:
        data = yield from _read(params, work)
        classes = "no classes" if data.num_classes is None else f"{data.num_classes} classes"
        yield Note(f"data {params.data.name}: {len(data.x1)} samples of shape {data.shape}, {classes}")
        for line in data.notes:
            yield Note(f"data: {line}")
        save_dataset(work / "out", data, {"name": params.data.name})
        write_json(work / "beside.json", data.beside or {})
        publish(work / "out", layout.DATASET)
        publish(work / "beside.json", layout.BESIDE)


def _read(params: Params, work: Path) -> Generator[Event, None, Dataset]:
    """The data, with a bar; its files must be those that `look` saw."""
    scratch = work / "scratch"
    scratch.mkdir(exist_ok=True)
    steps = loading(params.data, scratch)
    while True:
        try:
            yield Progress("read", *next(steps), of="data")
        except StopIteration as end:
            data: Dataset = end.value
            break
    if names := changed(params.model_dump(mode="json")["data"]):
        shutil.rmtree(scratch)  # so that nothing of it is taken up again
        raise DataError(
            f"data.root: files changed while they were read, which may have left a mixture ({names}); run again "
            "once they stay as they are"
        )
    return data
