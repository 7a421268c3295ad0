"""Rules for the students of params.yaml, and those that they share with rounds."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields

from pydantic import ValidationError

from flows.params.bounds import LEFT
from flows.params.files import ParamsError
from flows.params.messages import lines_of
from flows.params.schema import Distill, Params, Student
from fmcore.endings import matching_of
from fmcore.endings.maps import MapEnding
from fmcore.flow.paths import Linear
from fmcore.flow.perceptual import Perceptual
from fmcore.intake.latents import Latents
from fmcore.models.flow_maps import TakesSecondTime
from fmcore.models.networks import NETWORKS, Network

DIFFERS = tuple(
    field.name for field in fields(Distill) if field.name != "students"
)  # what a student may differ in


def left_rules(at: str, share: float, pairs: int) -> Iterator[str]:
    """A line if leaving out a share of the pairs leaves too few."""
    if 0 < share < 1 and (1 - share) * pairs < LEFT:
        left = f"{(1 - share) * pairs:.0f} of {pairs}"
        yield f"{at}: expected to leave {LEFT} pairs or more, got {share}, which leaves {left}"


def student_rules(params: Params) -> Iterator[str]:
    """Rules for the section `distill` with what each student differs in; each line once."""
    told: list[str] = []
    whole = params.model_dump(mode="json")
    for name, student in params.distill.students.items():
        key = f"distill.students.{name}"
        if unknown := [other for other in student.differs if other not in DIFFERS]:
            yield f"{key}.differs.{unknown[0]}: unknown key; expected any of {', '.join(DIFFERS)}"
            continue
        try:
            over = {**whole, "distill": params.raw_distill_of(name)}
            section = Params.model_validate_json(json.dumps(over)).distill
        except ParamsError as error:
            yield str(error)
            continue
        except ValidationError as error:
            yield from (f"{key}.differs.{line.removeprefix('distill.')}" for line in lines_of(error, over))
            continue

        def at(of: str, own: Collection[str] = student.differs, key: str = key) -> str:
            return f"{key}.differs.{of}" if of in own else f"distill.{of}"

        found = [*_section_rules(params, section, student, at), *_ending_rules(params, section, student, at)]
        fresh = [line for line in found if line not in told]
        told += fresh
        yield from fresh


def _section_rules(params: Params, section: Distill, student: Student, at: Callable[[str], str]) -> Iterator[str]:
    """Rules for a student's section; `at` says where a key of it stands."""
    if not 0 <= section.drop_longest < 1:
        yield f"{at('drop_longest')}: expected a number in [0, 1), got {section.drop_longest}"
    round_ = params.reflow.rounds.get(student.couplings)
    pairs = params.couple.pairs if round_ is None else round_.couple.get("pairs", params.couple.pairs)
    if isinstance(pairs, int):
        yield from left_rules(at("drop_longest"), section.drop_longest, pairs)
    if section.labels == "drop" and not params.conditional:
        yield f"{at('labels')}: drop needs conditional: true, got false"
    keeps = params.conditional and section.labels == "keep" and student.init == "base"
    unlabelled = params.reflow.labels == "drop" and round_ is not None and round_.teacher != "base"
    if keeps and unlabelled:
        yield (
            f"{at('labels')}: expected drop, since reflow.labels drop leaves the couplings of "
            f"{student.couplings} without labels, and a student that starts from base needs them"
        )
    if section.network is not None:
        yield from network_rules(params, section.network, at("network"))


def _ending_rules(params: Params, section: Distill, student: Student, at: Callable[[str], str]) -> Iterator[str]:
    """Rules for a student's ending."""
    train, ending = section.train, section.ending
    if isinstance(ending.distance, Perceptual) and _are_no_images(params):
        yield f"{at('ending')}.distance.name: lpips compares images, and data.name {params.data.name} are none"
    if isinstance(ending, MapEnding):
        yield from _map_rules(params, section, student, at)
    match = matching_of(ending)
    if match is None:
        return
    key = f"{at('ending')}.match" if isinstance(ending, MapEnding) else at("ending")
    count = getattr(params.data, "count", None)
    if count is not None and match.real > count:
        yield f"{key}.real: expected at most data.count {count}, got {match.real}"
    first, later = match.sizes(train.batch_size)
    if min(first, later or first, match.real) < 2 * train.accumulate:
        yield (
            f"{key}: each part of a batch needs 2 samples or more at t = 0, at later times (if there are "
            f"any) and of data, got {first}, {later} and {match.real} in {train.accumulate} parts "
            f"({at('train')}.accumulate)"
        )
    if params.conditional and section.labels == "drop" and not params.base.label_dropout:
        yield (
            f"{at('labels')}: drop needs base.label_dropout > 0 for an ending that matches, which asks the base "
            "about samples without their classes, got 0"
        )


def _map_rules(params: Params, section: Distill, student: Student, at: Callable[[str], str]) -> Iterator[str]:
    """Rules for an ending whose student is a flow map."""
    needs = f"{at('ending')}.name: {section.ending.name}"
    if params.base.path != Linear():
        path = params.base.path.name
        yield f"{needs} makes a flow map, which needs base.path {{name: linear, sigma_min: 0.0}}, got {path}"
    if params.base.predicts != "velocity":
        yield f"{needs} makes a flow map, which needs base.predicts velocity, got {params.base.predicts}"
    used = section.network or (None if student.init == "base" else params.reflow.network)
    if used is None and params.base.teacher is not None:
        wanted = f"expected {at('network')}, got null"
        yield f"{needs} makes a flow map, and base.teacher takes no second time: {wanted}"
    elif not isinstance(used or params.network, TakesSecondTime):
        got = (used or params.network).name
        yield f"{needs} needs a network that takes a second time, an mlp or a unet, got {got}"
    if isinstance(section.ending.distance, Perceptual):
        yield f"{at('ending')}.distance.name: lpips compares images, and the ends of a flow map's steps are none"
    assert isinstance(section.ending, MapEnding)
    sizes, parts = section.ending.sizes(section.train.batch_size), section.train.accumulate
    if min(sizes) < parts:
        diagonal, off_diagonal = sizes
        yield (
            f"{at('ending')}.diagonal: each part of a batch needs samples at s = t and at s > t, got {diagonal} "
            f"and {off_diagonal} in {parts} parts ({at('train')}.accumulate)"
        )


def _are_no_images(params: Params) -> bool:
    """Whether what is trained on is none."""
    return params.is_points or isinstance(params.data, Latents)


def network_rules(params: Params, network: Network, at: str) -> Iterator[str]:
    """A line for a network that does not take the data's samples."""
    takes = [kind.name for kind in NETWORKS.values() if len(params.data.shape) in kind.axes]
    if network.name not in takes:
        shape = list(params.data.shape)
        yield f"{at}.name: expected {' or '.join(takes)} for samples of shape {shape}, got {network.name}"
