"""Stage `check`: params.yaml and the files it names, before anything expensive starts.

It runs first whenever params.yaml changed, and a mistake stops `dvc repro` there. It opens no file of the data.
Its outputs are digests of the other files that params.yaml names: when one changes, stages run again.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from flows import layout
from flows.events import Events, Note
from flows.params.schema import Distill, Params
from flows.workshop.entry import Stage, addresses, entry_of
from flows.workshop.place import in_the_way, root
from flows.workshop.setup import device_of, processes_of
from flows.workshop.workspace import need_space
from fmcore.disk.files import sha256, write_json
from fmcore.disk.pairs import pair_bytes
from fmcore.endings import Ending, matching_of
from fmcore.endings.maps import MapEnding
from fmcore.endings.spaces import Hidden
from fmcore.flow.perceptual import Perceptual, load_lpips
from fmcore.flow.training import TrainConfig
from fmcore.intake.latents import Latents
from fmcore.intake.teachers import read_teacher, teacher_files
from fmcore.models.hidden import taps
from fmcore.score.extractors import FITTED, digest_of


def check(params: Params, stage: Stage) -> Events:
    """Checks the files and networks that params name; the params themselves were validated when they were read."""
    found = {}
    whole = params.model_dump(mode="json")
    outs = {out for address in addresses(whole) for out in entry_of(address, whole).outs}
    if lines := list(in_the_way(whole, outs)):
        raise ValueError("\n".join(lines))
    _check_processes(params)
    if isinstance(params.data, Latents):
        params.data.check()
    if params.base.teacher is not None:
        found["teacher_sha256"] = _check_teacher(params, params.base.teacher)
    found |= _check_perceptual(params)
    section = params.features
    options = (section.weights, section.download, params.sample_shape, device_of(params))
    digest = digest_of(section.extractor, *options)
    write_json(layout.CHECKED_FEATURES, {"extractor_sha256": digest} if digest else {})
    sections = {"network": None if params.base.teacher else params.network}
    sections |= {"reflow.network": params.reflow.network}
    sections |= {at("network"): student.network for student, at in _students(params)}
    with torch.device("meta"):  # takes no memory, and still raises for what cannot be built
        for key, network in sections.items():
            try:
                if network is not None:
                    network.build(params.data.shape, None)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
    for student, at in _students(params):
        _check_spaces(params, student.ending, at("ending"))
    _check_disk(params)
    yield from _long_warm_ups(params)
    yield Note(f"params.yaml is valid: {', '.join(params.models)} on {params.data.name}")
    write_json(layout.CHECKED, found)


def _check_processes(params: Params) -> None:
    """A ValueError if batches cannot be split between the processes."""
    size = processes_of(params)
    shared = {name: train for name, train in _trainings(params).items() if name != "features.train"}
    shared |= {f"reflow.rounds.{name}.train": params.train_of(name) for name in params.reflow.rounds}
    for name, train in shared.items():
        parts = size * train.accumulate
        if train.batch_size % parts:
            raise ValueError(
                f"{name}.batch_size: expected a multiple of {parts} (launch.processes {size} times accumulate "
                f"{train.accumulate}), got {train.batch_size}"
            )


def _trainings(params: Params) -> dict[str, TrainConfig]:
    """Each section of a training, by where it stands."""
    sections = {"reflow.train": params.reflow.train}
    sections |= {at("train"): student.train for student, at in _students(params)}
    sections |= {"base.train": params.base.train} if params.base.teacher is None else {}
    return sections | ({"features.train": params.features.train} if params.features.extractor in FITTED else {})


def _long_warm_ups(params: Params) -> Events:
    """Says which trainings end before they reach their learning rate."""
    for name, train in _trainings(params).items():
        if train.warmup_images > train.images:
            yield Note(
                f"{name}: the warm-up of {train.warmup_images:,} images is longer than the training of "
                f"{train.images:,}, which ends at {train.images / train.warmup_images:.0%} of lr"
            )


def _check_teacher(params: Params, folder: str) -> str:
    """The digests of the teacher's files; a ValueError if it makes other samples than the data's."""
    teacher = read_teacher(folder)
    if teacher.shape != params.data.shape:
        raise ValueError(
            f"base.teacher: {folder} makes samples of shape {teacher.shape}, but those of data.name "
            f"{params.data.name} have shape {params.data.shape}"
        )
    if params.conditional != (teacher.num_classes is not None):
        has = "no classes" if teacher.num_classes is None else f"{teacher.num_classes} classes"
        raise ValueError(f"conditional: {str(params.conditional).lower()}, but base.teacher {folder} has {has}")
    return " ".join(sha256(path) for path in teacher_files(folder))


def _check_disk(params: Params) -> None:
    """An OSError if the generated pairs of all rounds cannot have room, even if all that lie there made way."""
    needed = 0
    for name in params.reflow.rounds:
        couple = params.couple_of(name)
        needed += pair_bytes(params.data.shape, getattr(torch, couple.dtype)) * (couple.pairs + couple.inverted)
    places = (Path.cwd() / layout.COUPLINGS, *(root() / layout.WORK).glob("couple-*"))
    there = sum(path.stat().st_size for place in places for path in place.rglob("pairs-*") if path.is_file())
    need_space(root(), needed - there, f"the couplings of {', '.join(params.reflow.rounds)}")


def _students(params: Params) -> Iterator[tuple[Distill, Callable[[str], str]]]:
    """Each student's section, and where a key of it stands."""
    for name, student in params.distill.students.items():

        def at(of: str, own: Collection[str] = student.differs, name: str = name) -> str:
            return f"distill.students.{name}.differs.{of}" if of in own else f"distill.{of}"

        yield params.distill_of(name), at


def _check_spaces(params: Params, ending: Ending, at: str) -> None:
    """A ValueError if a student's ending asks the base for activations that it does not have."""
    teacher, match = params.base.teacher, matching_of(ending)
    if match is None:
        return
    at = f"{at}.match.spaces" if isinstance(ending, MapEnding) else f"{at}.spaces"
    if teacher is not None:
        base = read_teacher(teacher).network
    else:
        with torch.device("meta"):
            base = params.network.build(params.data.shape, None)
    offered = taps(base)
    if match.spaces == "auto":
        if not offered:
            raise ValueError(f"{at}: the base offers no activations to choose from; expected a list, e.g. pixels")
        return
    for space in match.spaces:
        if not isinstance(space, Hidden):
            continue
        if space.block not in offered:
            raise ValueError(f"{at}: expected a block of {', '.join(offered) or 'none'}, got {space.block!r}")
        if space.pooled and not offered[space.block].has_positions:
            raise ValueError(f"{at}: {space.block} has no positions to average over; expected pooled: false")


def _check_perceptual(params: Params) -> dict[str, str]:
    """Digests of the weights of every perceptual distance; they are read now, not after hours of training."""
    found: dict[str, str] = {}
    distances = {"base": params.base.distance, "reflow": params.reflow.distance}
    distances |= {at("ending"): student.ending.distance for student, at in _students(params)}
    for at, distance in distances.items():
        if isinstance(distance, Perceptual):
            try:
                load_lpips(distance.backbone, distance.linear)
            except ValueError as error:
                raise ValueError(f"{at}.distance: {error}") from None
            found |= {f"lpips {p}": sha256(Path(p)) for p in (distance.backbone, distance.linear)}
    return found
