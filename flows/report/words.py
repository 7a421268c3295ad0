"""What the page says in words, which come before its statistics."""

from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10
from typing import NamedTuple

from flows.report.results import PARETO_NFE, Results, choices_of, sampled_of, training_passes
from fmcore.score.estimates import Estimate, difference
from fmcore.score.pair_quality import FAR
from fmcore.verdict import SURE, Choice, Learned, Sampled, next_for

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Headline(NamedTuple):
    """A number that a reader takes away, and what it is; `strong` for the one that the page is about."""

    number: str
    what: str
    strong: bool = False


class Answer(NamedTuple):
    """The page in one sentence, what else must be said with it, and the numbers behind it."""

    sentence: str
    beside: list[str]
    headlines: list[Headline]


def plus_minus(value: float, std: float) -> str:
    """A value and its standard error with two digits, or a value without an error with four digits.

    >>> plus_minus(0.37314, 0.0123)
    '0.373 ± 0.012'
    >>> plus_minus(73.3831, 0.0384)
    '73.383 ± 0.038'
    >>> plus_minus(0.00000231, 0.00000012)
    '2.31e-06 ± 0.12e-06'
    >>> plus_minus(1.5, float("nan"))
    '1.5'
    """
    if not (isfinite(std) and std > 0):
        return f"{value:.4g}"
    tens = floor(log10(float(f"{std:.1e}")))
    if tens > -6:
        return f"{value:.{max(0, 1 - tens)}f} ± {std:.{max(0, 1 - tens)}f}"
    power = max(tens, floor(log10(abs(value)))) if value else tens
    digits = power - tens + 1
    return f"{value / 10**power:.{digits}f}e{power:+03d} ± {std / 10**power:.{digits}f}e{power:+03d}"


def called(model: str) -> str:
    """What a sentence calls a model: a kind of model takes an article, a name none.

    >>> called("student"), called("r1"), called("meanflow")
    ('the student', 'r1', 'meanflow')
    """
    return f"the {model}" if model in ("base", "student") else model


def opening(model: str) -> str:
    """What a sentence that begins with a model calls it.

    >>> opening("student"), opening("r1")
    ('The student', 'r1')
    """
    return upper_first(called(model)) if called(model) != model else model


def upper_first(text: str) -> str:
    """A text that begins a sentence."""
    return f"{text[0].upper()}{text[1:]}"


def evaluations(count: int) -> str:
    """A number of evaluations.

    >>> evaluations(1), evaluations(4), evaluations(64)
    ('one evaluation', 'four evaluations', '64 evaluations')
    """
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} evaluation{'' if count == 1 else 's'}"


def times(ratio: float) -> str:
    """A ratio with as many digits as one reads.

    >>> times(3.847), times(38.47), times(912.3)
    ('3.8', '38', '912')
    """
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


def number(value: float) -> str:
    """Three digits without a power of ten.

    >>> number(73.3831), number(0.0404), number(1234.5)
    ('73.4', '0.0404', '1,234')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(count: float) -> str:
    """A large number as it is spoken.

    >>> size(3_700_000), size(412_000), size(1.25e9)
    ('3.7 million', '412 thousand', '1.2 billion')
    """
    for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count >= 100 * unit else f"{count / unit:.2g} {name}"
    return f"{count:.0f}"


def answer(results: Results) -> Answer:
    """What the fewest evaluations reach, against the base at its best."""
    found = choices_of(results)
    few, base = found[0].run, best_of(results, "base")
    gap = difference(few.score, base.score)
    at_best = f"the base at its best ({number(base.score.value)}, {base.how} at {base.nfe})"
    if few.name == "base":
        verb = (
            f"at {base.nfe} it reaches {number(base.score.value)}"
            if base.nfe != few.nfe
            else "more do not help it"
        )
        sentence = f"At {evaluations(few.nfe)} nothing beats the base: {number(few.score.value)}; {verb}."
    else:
        ratio = few.score.value / base.score.value
        if abs(gap.value) <= SURE * gap.std:
            against = f"as near to the data as {at_best}"
        elif ratio < 1:
            more = f"{times(1 / ratio)} times" if ratio < 0.9 else f"{100 * (1 - ratio):.2g} %"
            against = f"{more} nearer to the data than {at_best}"
        elif ratio > 1.1:
            against = f"{times(ratio)} times as far from the data as {at_best}"
        else:
            against = f"{100 * (ratio - 1):.2g} % farther from the data than {at_best}"
        start = evaluations(few.nfe)
        sentence = f"{upper_first(start)} of {called(few.name)}: {number(few.score.value)}, {against}."
    return Answer(sentence, _beside(results, few), _headlines(found, base, few))


def best_of(results: Results, model: str) -> Sampled:
    """The run in which a model comes nearest to the data."""
    return min((run for run in sampled_of(results) if run.name == model), key=lambda run: run.score.value)


def _beside(results: Results, few: Sampled) -> list[str]:
    """What must be said beside the sentence."""
    lines = []
    level = results.floor
    if level is not None:
        what = "points" if results.params.is_points else "images"
        fresh = f"As many fresh {what} of the data score {level.value:.2g}"
        if few.score.value >= level.value:
            lines.append(
                f"{fresh}. A lower score would be chance, or would come from copying the data or "
                "from matching to it."
            )
        elif results.is_matched(few.name):
            lines.append(
                f"{fresh}. {opening(few.name)} scores lower, since it was matched to the very samples "
                "that it is compared with: compare it with held-out data before you say that it beats the data."
            )
        else:
            lines.append(
                f"{fresh}, and {few.name} scores lower. That may be chance, or its samples may be copies: "
                "look at memorisation."
            )
    return lines


def _headlines(found: Sequence[Choice], base: Sampled, few: Sampled) -> list[Headline]:
    """The best within one, two and four evaluations, and the base at its best."""
    told: dict[Sampled, Headline] = {}
    for choice in found:
        if choice.budget in PARETO_NFE and (run := choice.run) not in told:
            told[run] = Headline(number(run.score.value), f"{run.name}, {_spoken(run)}", strong=run is few)
    if few.name != "base":
        told[base] = Headline(number(base.score.value), f"base at its best, {_spoken(base)}")
    return list(told.values())


def _spoken(run: Sampled) -> str:
    return evaluations(run.nfe) + ("" if run.how.startswith("euler") else f", {run.how}")


def cost(results: Results) -> str:
    """What a sample and the model itself cost, against the base at its best."""
    few, base = choices_of(results)[0].run, best_of(results, "base")
    flops = results.flops[few.name] * few.nfe
    scale, unit = flop_unit(flops / 1e9)
    drawn = f"A sample of {called(few.name)} by {evaluations(few.nfe)} takes {flops / 1e9 * scale:.3g} {unit}"
    share = results.flops["base"] * base.nfe / flops
    if few.name == "base":
        return f"{drawn}."
    passes = training_passes(results.params)
    made = f"Making {called(few.name)}, its parents included, took {size(passes[few.name])} evaluations"
    more = f", {times(passes[few.name] / passes['base'])} times what the base took" if passes["base"] else ""
    return f"{drawn}, 1/{times(share)} of one of the base at its best. {made}{more}."


def flop_unit(gflops: float) -> tuple[float, str]:
    """What to multiply GFLOP by, and the unit then."""
    return (1.0, "GFLOP") if gflops >= 1 else (1e3, "MFLOP")


def straightness(results: Results) -> str:
    """How much straighter the rounds are than the base."""
    table = results.of_models
    table = table[table.metric == "straightness"]
    found = {row["model"]: row["value"] for row in table.to_dict("records")}
    rounds = [name for name in results.rounds if found.get(name)]
    if not rounds or not found.get("base"):
        return ""
    parts = [f"those of {name} {times(found['base'] / found[name])} times" for name in rounds]
    steps = " and ".join(f"{int(nfe):,}" for nfe in sorted(set(table.nfe)))
    measured = f"Measured on {steps} Euler steps: with fewer the numbers are smaller, so compare equal ones."
    return f"Paths straighter than the base's: {' and '.join(parts)}. A straight path needs one step. {measured}"


def next_steps(results: Results) -> list[str]:
    """What would make each student better."""
    floor = results.floor
    fresh = None if floor is None else Estimate(floor.value, floor.std, floor.samples)
    lines = []
    for score in results.pairs_scores:
        level = Estimate(score.level.value, score.level.std, score.level.samples)
        for name in score.learners:
            run = min((run for run in sampled_of(results) if run.name == name), key=lambda run: run.nfe)
            run = run._replace(name=opening(name))
            lines.append(next_for(Learned(run, level, results.is_matched(name), fresh)))
    return lines


def couplings(quality: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> str:
    """Whether the noise of the stored pairs is as it should be; `names` says what each number is."""
    off = [
        f"{names.get(key.removesuffix('_sigmas'), key)} for {name} ({value:+.1f} σ)"
        for name, of_round in quality.items()
        for key, value in of_round.items()
        if key.endswith("_sigmas") and not abs(value) < FAR
    ]
    if off:
        return f"Noise does not look like this: {', '.join(off)}. Do not trust the pairs of that round."
    return "The noise of all pairs is as noise should be."
