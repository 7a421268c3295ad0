"""What runs are called in MLflow, how they are coloured, sorted and described.

MLflow's page shows the first 25 characters of a name or so, hence the order: what tells runs apart comes first.
"""

import re
from collections.abc import Mapping, Sequence

from flows.params.files import Difference

# A row for every third pipeline: the report's colours, darker ones, lighter ones; a model keeps its hue. The rows
# were searched for: any two colours differ as much as they can at a contrast of 3 : 1 to white and to MLflow's
# dark page. Mixing the first row with black made r1 of one pipeline look like the student of the next.
COLOURS = tuple(
    tuple(row.split())
    for row in (
        "#2b7de0 #d9650a #12926f #c2429b #8a63d2 #8f7a10 #d6455d #756057 #6aa117 #099eae",
        "#52677f #8f5712 #376f6a #8c5865 #6f5b86 #606742 #be3012 #f53df5 #0b9cda #960df2",
        "#8496b3 #9c8572 #739993 #b58291 #a886bf #8f9566 #c87968 #2d762d #3d50f5 #14768f",
    )
)
LONGEST = 40  # characters of what differs
NEWEST = 99_999
HEADLINE = re.compile(r"at (\d+)/(.+)")  # numbers that pipelines are compared by: evaluations, and the model
PAGE = "prefect.page."  # of tags: a stage's page in Prefect


def colour(place: int, number: int) -> str:
    """The colour of the model at a place in its pipeline, in the shade of the pipeline of that number."""
    shade = COLOURS[(number - 1) % len(COLOURS)]
    return shade[place % len(shade)]


def order(place: int, number: int) -> str:
    """Sorts runs: the newest pipeline first, its models as it makes them."""
    return f"{NEWEST - number:05d}.{place:02d}"


def differs(found: Difference | None, data: str) -> str:
    """What parameters differ in from their preset, in a line; the preset too, unless it has the data's name.

    >>> differs(Difference("digits", {"couple.nfe": 8}, ("reflow.rounds.r2.teacher",)), "digits")
    'couple.nfe=8 no reflow.rounds.r2.teacher'
    """
    if found is None:
        return ""
    return shortened([*([found.preset] if found.preset != data else []), *found.words])


def shortened(words: Sequence[str]) -> str:
    """As many of the words as fit, and how many more there are."""
    text = " ".join(words)
    if len(text) <= LONGEST:
        return text
    kept = [word for i, word in enumerate(words) if len(" ".join(words[: i + 1])) <= LONGEST - 4]
    more = len(words) - len(kept)
    return " ".join([*kept, f"+{more}"]) if kept else f"{text[: LONGEST - 4]}..."


def pipeline_name(data: str, number: int, difference: str) -> str:
    """As `digits 12 / couple.nfe=8`."""
    return " / ".join(filter(None, [f"{data or 'pipeline'} {number}", difference]))


def model_name(model: str, data: str, number: int, difference: str) -> str:
    """As `r2 / couple.nfe=8 / digits 12`."""
    return " / ".join(filter(None, [model, difference, f"{data or 'pipeline'} {number}"]))


def description(tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """What a run's page says above its numbers, in Markdown."""
    first, _, rest = tags.get("fmcore.verdict", "").partition(". ")
    lines = [f"**{first}.**"] if first else []
    lines += _headlines(metrics, tags.get("fmcore.models", "").split())
    lines += [rest] if rest else []
    if preset := tags.get("fmcore.preset"):
        keys = tags.get("fmcore.differs", "").splitlines()
        lines.append(f"Preset `{preset}`, " + ("but for:" if keys else "unchanged."))
        lines += ["\n".join(f"- `{key}`" for key in keys)] if keys else []
    if experiment := tags.get("dvc.exp"):
        lines.append(f"DVC experiment `{experiment}`.")
    links = [f"[{key.removeprefix(PAGE)}]({url})" for key, url in sorted(tags.items()) if key.startswith(PAGE)]
    if links:
        lines.append(f"In Prefect: {', '.join(links)}.")
    return "\n\n".join(lines)


def _headlines(metrics: Mapping[str, float], models: Sequence[str]) -> list[str]:
    """A table of `at NFE/MODEL`, models in order, then what is left: the best of all."""
    found: dict[str, dict[int, float]] = {}
    for key, value in metrics.items():
        if told := re.fullmatch(HEADLINE, key):
            found.setdefault(told[2], {})[int(told[1])] = value
    budgets = sorted({nfe for values in found.values() for nfe in values})
    if not budgets:
        return []
    rows = [["evaluations of the network", *map(str, budgets)], ["---"] * (len(budgets) + 1)]
    for name, values in sorted(found.items(), key=lambda item: [*models, item[0]].index(item[0])):
        rows.append([name, *(f"{values[nfe]:.3g}" if nfe in values else "" for nfe in budgets)])
    return ["\n".join(f"| {' | '.join(row)} |" for row in rows)]
