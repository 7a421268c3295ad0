"""Does another reflow round pay, and which model is best at each number of evaluations?

A round straightens its teacher's paths, so its few-step samples get better. It learns from its teacher's samples
instead of data, so its many-step samples get worse. Both are measured. `bend` is how much worse a round scores at
few steps than at many; a further round could win no more than that. `drift` is how much worse the round scores at
many steps than its teacher.

A further round removes a part of the bend, and adds a part of the drift at every number of steps. Of 28 cases
under fourteen settings (docs/verdict.md), three had a bend of more than `SURE` standard errors and more than
`RATIO` times the drift. In these the next round won 4 to 26 % of the one-step distance, in the others at most 8 %.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fmcore.score.estimates import Estimate, difference

RATIO = 4.0  # least bend / drift for a further round to pay; any value from 3.2 to 4.5 decides the 28 cases alike
WORTH = 0.05  # the least bend that is worth a round, as a share of the few-step distance
MANY = 32  # least evaluations to measure drift at; at fewer, the teacher's coarse steps look like the round's gain
SURE = 2.0  # two models differ if their scores do by more standard errors than this


class Round(NamedTuple):
    """What a round `won` at few steps and lost (`drift`) at many, both against its teacher, and its `bend`."""

    name: str
    teacher: str
    won: Estimate
    drift: Estimate
    bend: Estimate


class Verdict(NamedTuple):
    """What each round did, and whether a further one after the last `pays`; None if that cannot be told.

    `few` and `many` are the two NFE compared. `margin` is the last round's bend less `RATIO` times its drift, a
    negative drift counting as 0.
    """

    few: int
    many: int
    rounds: tuple[Round, ...]
    margin: Estimate
    pays: bool | None


class Sampled(NamedTuple):
    """A model's score at a number of evaluations, and how it was sampled, in words."""

    name: str
    how: str
    nfe: int
    score: Estimate


class Choice(NamedTuple):
    """The best run that needs at most `budget` evaluations, and the models that cannot be told from it there."""

    budget: int
    run: Sampled
    as_good: tuple[str, ...]


def verdict(scores: Mapping[str, Mapping[int, Estimate]], teachers: Mapping[str, str]) -> Verdict:
    """Weighs the rounds of a pipeline by their distances to the data, smaller being better.

    Main arguments:
        scores: by model and NFE, all with one solver and grid and from one noise, so that differences have paired
            errors.
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
    # A round that came out better at many steps will not do so again: its drift counts as none.
    margin = difference(last.bend, _times(RATIO, last.drift)) if last.drift.value > 0 else last.bend
    worth = last.bend.value > max(SURE * last.bend.std, WORTH * scores[last.name][few].value)
    return Verdict(few, many, rounds, margin, None if many < MANY else worth and margin.value > 0)


def _times(factor: float, a: Estimate) -> Estimate:
    return Estimate(factor * a.value, abs(factor) * a.std, a.samples, tuple(factor * v for v in a.left_out))


def choices(runs: Sequence[Sampled]) -> tuple[Choice, ...]:
    """For each number of evaluations, the best of the runs that need no more."""
    found = []
    for budget in sorted({run.nfe for run in runs}):
        within = [run for run in runs if run.nfe <= budget]
        best = min(within, key=lambda run: run.score.value)
        gaps = [(run.name, difference(run.score, best.score)) for run in within if run.name != best.name]
        as_good = dict.fromkeys(name for name, gap in gaps if gap.value <= SURE * gap.std)
        found.append(Choice(budget, best, tuple(as_good)))
    return tuple(found)


class Learned(NamedTuple):
    """A student at its fewest evaluations, the score of the pairs it learnt, and that of fresh data if known."""

    run: Sampled
    pairs: Estimate
    matched: bool
    floor: Estimate | None


def next_for(student: Learned) -> str:
    """What would make a student better at its fewest evaluations, in words.

    A student that learns from pairs alone cannot pass them. What it lacks to them, training or another ending can
    win; what they lack to the data, only better pairs or matching can. The students of docs/endings.md agree: none
    without matching passed its pairs beyond chance, and every one with matching came nearer than its kind without.
    """
    name, few, reached = student.run.name, _steps(student.run.nfe), student.run.score
    if student.matched:
        if student.floor is None:
            return f"{name} is matched to data: longer matching or a larger network is what is left to try."
        gap = difference(reached, student.floor)
        if gap.value <= SURE * gap.std:
            return f"{name} is as near at {few} as fresh data are: this score cannot show anything better."
        left = f"{gap.value:.3g} ± {gap.std:.1g}"
        return (
            f"{name} is matched to data and {left} from fresh ones at {few}: match longer, or enlarge its network."
        )
    gap = difference(reached, student.pairs)
    if gap.value <= SURE * gap.std:
        return (
            f"{name} is as good at {few} as the pairs it learnt: only better pairs, or matching to data, can help."
        )
    lacks = f"{gap.value:.3g} ± {gap.std:.1g} worse at {few} than the pairs it learnt"
    return f"{name} is {lacks}: longer training or another ending can win that much, matching to data more."


def sentences(found: Verdict) -> list[str]:
    """The verdict in words, its conclusion first."""
    last, few, many = found.rounds[-1], _steps(found.few), _steps(found.many)
    bend, drift = last.bend, last.drift
    left = "nothing is left to win"
    if abs(bend.value) <= SURE * bend.std:
        same = f"The scores of {last.name} at {few} and at {many} cannot be told apart"
        straight = f"{same} ({_signed(bend)})"
    elif bend.value < 0:
        straight = f"{last.name} is better at {few} than at {many} ({_signed(bend)})"
    else:
        lost = f"{bend.value:.3g} ± {bend.std:.1g}"
        straight = f"At {few} {last.name} is {lost} worse than at {many}"
        left = "that is all a further round could win"
    did = _did(drift._replace(value=-drift.value), f"at {many}")
    drifted = f"Against its teacher {last.teacher}, {last.name} {did}"
    if found.pays is None:
        conclusion = (
            f"Whether another reflow round after {last.name} pays cannot be told from scores at {many} or fewer "
            f"(score at {MANY} or more)"
        )
    else:
        pays = "is expected to pay" if found.pays else "is not expected to pay"
        close = abs(found.margin.value) <= SURE * found.margin.std
        conclusion = (
            f"Another reflow round after {last.name} {pays}{', though it is a close call' if close else ''}"
        )
    rule = (
        f"A round pays if what it could win is beyond chance, is at least {WORTH:.0%} of the distance, and is "
        f"more than {RATIO:.0f} times what the last round lost."
    )
    told = f"{straight}. {drifted}." if found.pays is None else f"{straight}: {left}. {drifted}. {rule}"
    lines = [f"{conclusion}. {told}"]
    for one in found.rounds:
        did = _did(one.won, f"at {few}")
        kept = _did(one.drift._replace(value=-one.drift.value), f"at {many}")
        lines.append(f"{one.name}, against its teacher {one.teacher}, {did} and {kept}.")
    return lines


def _did(won: Estimate, where: str) -> str:
    if abs(won.value) <= SURE * won.std:
        return f"differs by at most {abs(won.value) + SURE * won.std:.2g} {where}"
    return f"{'won' if won.value > 0 else 'lost'} {abs(won.value):.3g} ± {won.std:.1g} {where}"


def _steps(nfe: int) -> str:
    return "one evaluation" if nfe == 1 else f"{nfe} evaluations"


def _signed(change: Estimate) -> str:
    return f"{change.value:+.2g} ± {change.std:.1g}"
