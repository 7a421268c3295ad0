"""Stage `intake`: the data, read once; every later stage finds it as tensors."""

from flows import layout
from flows.events import Events, Note
from flows.params.schema import Params
from flows.workshop.entry import Stage
from flows.workshop.workspace import publish, workspace
from fmcore.disk.dataset import save_dataset
from fmcore.disk.files import write_json
from fmcore.intake.sets import Data


def intake(params: Params, stage: Stage) -> Events:
    """Reads what `data` names and writes it where all stages look."""
    source: Data = params.data
    data = source.load()
    classes = "no classes" if data.num_classes is None else f"{data.num_classes} classes"
    yield Note(f"data {params.data.name}: {len(data.x1)} samples of shape {data.shape}, {classes}")
    for line in data.notes:
        yield Note(f"data: {line}")
    with workspace(stage, params) as work:
        save_dataset(work / "out", data, {"name": params.data.name})
        write_json(work / "beside.json", data.beside or {})
        publish(work / "out", layout.DATASET)
        publish(work / "beside.json", layout.BESIDE)
