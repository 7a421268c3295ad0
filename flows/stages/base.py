"""Stage `base`: the flow that the first round starts from."""

import torch

from flows import layout
from flows.events import Events, Note
from flows.params.schema import Params
from flows.stages.training import finish, publish_model, run_training
from flows.workshop.entry import Stage
from flows.workshop.setup import classes_of, device_of, fresh, set_up
from flows.workshop.workspace import made_by, workspace
from fmcore.disk.dataset import Dataset, load_dataset
from fmcore.disk.files import read_json
from fmcore.disk.sums import check
from fmcore.flow.couplings import COUPLINGS, Coupling, Flipped, LabelDropout
from fmcore.flow.fields import Convention
from fmcore.flow.training import flow_objective, new_state
from fmcore.intake.teachers import Teacher, read_teacher
from fmcore.models.folder import Trained, save_model
from fmcore.models.networks import initialised


def base(params: Params, stage: Stage) -> Events:
    """The base flow: data paired with fresh noise, or a diffusion model that exists already."""
    section, device = params.base, device_of(params)
    if section.teacher is not None:
        yield from _adopt(params, stage, section.teacher)
        return
    data = load_dataset(layout.DATASET)
    classes = classes_of(params, data)
    null_label = classes if section.label_dropout else None
    objective = flow_objective(
        _coupling(params, data, classes),
        section.path,
        section.times,
        section.distance,
        batch_size=section.train.batch_size,
        precision=params.precision,
        weighting=section.weighting,
        predicts=section.predicts,
    )
    with workspace(stage, params) as work:
        network = initialised(params.network, data.shape, classes, params.seed).to(device)
        convention = Convention(section.path, section.predicts, _clip(params, data))
        known = (data.names, data.units, data.encoding)
        like = Trained(network, params.network, data.shape, classes, {}, "", convention, null_label, *known)
        yield set_up(params, like, section.train.images, training=True)
        state = new_state(network, section.train)
        yield from run_training("base", work, state, objective, section.train, params.seed)
        about = {"rounds": 0, "coupling": section.coupling}
        yield from finish("base", work, state, section.train, like, made_by(params, stage) | about)


def _clip(params: Params, data: Dataset) -> float | None:
    """Where the data that predicted noise comes to is cut: at the largest value of the data, as DDPMs do.

    Near t = 0 noise says next to nothing of the data, and an error of it becomes one many times as large.
    """
    if params.base.predicts != "noise":
        return None
    return 1.0 if data.bin_width is not None else float(torch.stack(torch.aminmax(data.x1)).abs().max())


def _coupling(params: Params, data: Dataset, classes: int | None) -> Coupling:
    """How the base pairs noise and data."""
    section = params.base
    coupling = COUPLINGS[section.coupling](fresh(data, device_of(params), labelled=classes is not None))
    if classes is not None and section.label_dropout:
        coupling = LabelDropout(coupling, section.label_dropout, classes)
    return Flipped(coupling) if params.flip else coupling


def _adopt(params: Params, stage: Stage, folder: str) -> Events:
    """Publishes the model in `folder` as the base."""
    teacher = read_teacher(folder)
    check(layout.DATASET, "manifest.json")
    classes, null_label = _classes(params, teacher, folder)
    with workspace(stage, params) as work:
        save_model(
            work / "out",
            teacher.network,
            network_config=teacher.network_config,
            shape=teacher.shape,
            num_classes=classes,
            null_label=null_label,
            class_names=None if classes is None else read_json(layout.DATASET / "manifest.json").get("classes"),
            convention=teacher.convention,
            # No other parameter decides an adopted base, so none may change its bytes.
            manifest=made_by(params, stage) | {"params": {"base.teacher": folder}, "rounds": 0, "images_seen": 0},
        )
        which = "" if null_label is None else f"; its class {null_label} stands for none"
        yield Note(f"base: {folder} taken as it is; it predicts {teacher.convention.predicts}{which}")
        yield from publish_model("base", work)


def _classes(params: Params, teacher: Teacher, folder: str) -> tuple[int | None, int | None]:
    """How many classes the teacher has, and which of its labels stands for none: one more than the data has.

    Raises:
        ValueError: if its classes are not the data's.
    """
    if teacher.num_classes is None:
        return None, None
    classes = read_json(layout.DATASET / "manifest.json")["num_classes"]
    if teacher.num_classes == classes:
        return classes, None
    if classes is not None and teacher.num_classes == classes + 1:
        return classes, classes
    raise ValueError(
        f"base.teacher: {folder} has {teacher.num_classes} classes, data.name {params.data.name} {classes}"
    )
