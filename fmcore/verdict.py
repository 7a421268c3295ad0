"""Does another reflow round pay, and which model to use at each number of evaluations?

A round straightens its teacher's paths, so few steps come out better, and it learns from its teacher's samples
instead of data, so many steps come out worse. Both are measured: `bend`, what a round's few-step samples still
lose against its own many-step ones, is all that a further round could win; `drift` is what the round lost at many
steps.

A further round straightens a part of the bend and drifts again by a part of the drift, at every number of steps.
Of 28 cases under fourteen settings (docs/verdict.md) three had a bend that was sure and more than `RATIO` times the
drift; the next round won 4 to 26 % of the one-step distance there, and at most 8 % anywhere else.
"""

from collections.abc import Mapping
from typing import NamedTuple

from fmcore.metrics import Estimate, difference

RATIO = 4.0  # of bend to drift, from which on a further round pays; anything from 3.2 to 4.5 decides the same
SURE = 2.0  # standard errors from which on two models differ


class Round(NamedTuple):
    """What a round did: `won` at few steps, `drift` at many, both against its teacher; and its `bend`."""

    name: str
    teacher: str
    won: Estimate
    drift: Estimate
    bend: Estimate


class Choice(NamedTuple):
    """The best model at a number of evaluations, and the others that are as good within `SURE` errors."""

    nfe: int
    name: str
    score: Estimate
    as_good: tuple[str, ...]


class Verdict(NamedTuple):
    """What each round did, whether a further one after the last pays, and what to use.

    `margin` is the last round's bend less `RATIO` times its drift.
    """

    few: int
    many: int
    rounds: tuple[Round, ...]
    margin: Estimate
    pays: bool
    choices: tuple[Choice, ...]


Scores = Mapping[str, Mapping[int, Estimate]]


def verdict(scores: Scores, teachers: Mapping[str, str]) -> Verdict:
    """Weighs the rounds of a pipeline by their distances to the data, smaller being better.

    Main arguments:
        scores: by model and NFE, all with one solver and grid and from one noise, so that differences have paired
            errors. Models that are no rounds (the base, a student) are only among the choices.
        teachers: each round's teacher, in the order in which they were made.

    Raises:
        ValueError: if there is no round, or rounds and teachers have fewer than two NFE in common.
    """
    if not teachers:
        raise ValueError("a verdict needs at least one reflow round")
    flows = {*teachers, *teachers.values()}
    common = sorted(set.intersection(*(set(scores[name]) for name in flows)))
    if len(common) < 2:
        raise ValueError(f"a verdict needs two NFE that all flows were scored at, got {common}")
    few, many = common[0], common[-1]
    rounds = tuple(
        Round(
            name,
            teacher,
            won=difference(scores[teacher][few], scores[name][few]),
            drift=difference(scores[name][many], scores[teacher][many]),
            bend=difference(scores[name][few], scores[name][many]),
        )
        for name, teacher in teachers.items()
    )
    last = rounds[-1]
    margin = difference(last.bend, _times(RATIO, last.drift))
    pays = last.bend.value > SURE * last.bend.std and margin.value > 0
    return Verdict(few, many, rounds, margin, pays, _choices(scores))


def _times(factor: float, a: Estimate) -> Estimate:
    return Estimate(factor * a.value, abs(factor) * a.std, a.samples, tuple(factor * v for v in a.left_out))


def _choices(scores: Scores) -> tuple[Choice, ...]:
    found = []
    for nfe in sorted({nfe for by_nfe in scores.values() for nfe in by_nfe}):
        # Whoever may take that many evaluations may also take fewer.
        best = {
            name: min((at for at in by_nfe if at <= nfe), key=lambda at: by_nfe[at].value)
            for name, by_nfe in scores.items()
            if any(at <= nfe for at in by_nfe)
        }
        values = {name: scores[name][at] for name, at in best.items()}
        name = min(values, key=lambda of: values[of].value)
        gaps = {other: difference(value, values[name]) for other, value in values.items() if other != name}
        as_good = tuple(other for other, gap in gaps.items() if gap.value <= SURE * gap.std)
        found.append(Choice(nfe, name, values[name], as_good))
    return tuple(found)


def sentences(found: Verdict) -> list[str]:
    """The verdict in words, its conclusion first."""
    last, few, many = found.rounds[-1], _steps(found.few), _steps(found.many)
    bend, drift = last.bend, last.drift
    pays = "is expected to pay" if found.pays else "is not expected to pay"
    if abs(found.margin.value) <= SURE * found.margin.std:
        pays += ", though it is a close call"
    reason = (
        f"{last.name} still loses {bend.value:.3g} ± {bend.std:.1g} at {few} against its own {many}"
        if bend.value > SURE * bend.std
        else f"{last.name} is as good at {few} as at {many}"
    )
    drifted = f"{_signed(drift.value)} ± {drift.std:.1g} at {many} by being trained on samples of {last.teacher}"
    lines = [
        f"Another reflow round after {last.name} {pays}: {reason}, and it changed by {drifted}. "
        f"A round pays where the first is more than {RATIO:.0f} times the second."
    ]
    for one in found.rounds:
        won, drift = _moved(one.won), _moved(one.drift)
        if won > 0:
            did = f"won {one.won.value:.3g} ± {one.won.std:.1g} at {few}"
        elif won < 0:
            did = f"lost {-one.won.value:.3g} ± {one.won.std:.1g} at {few}"
        else:
            seen = f"{_signed(-one.won.value)} ± {one.won.std:.1g}"
            did = f"changed nothing at {few} that could be told from chance ({seen})"
        cost = {1: "lost", 0: "kept its place within", -1: "won"}[drift]
        amount = f"{2 * one.drift.std:.2g}" if drift == 0 else f"{abs(one.drift.value):.3g} ± {one.drift.std:.1g}"
        lines.append(f"{one.name}, against its teacher {one.teacher}, {did} and {cost} {amount} at {many}.")
    return lines


def _moved(change: Estimate) -> int:
    return 0 if abs(change.value) <= SURE * change.std else 1 if change.value > 0 else -1


def _steps(nfe: int) -> str:
    return "one evaluation" if nfe == 1 else f"{nfe} evaluations"


def _signed(value: float) -> str:
    return f"{value:+.2g}"
