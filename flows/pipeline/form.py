"""The form of Prefect's page: typed fields with bounds and choices, made for the checkout this runs in.

The server refuses what is outside of them when a run is submitted or a schedule is saved. What a schema cannot say
is checked when the run starts, before anything else, in the words of params.yaml.

No field may be null: for one that may, the page asks for its type first. So each has a default that changes
nothing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.params.files import FILE, ParamsError, load_yaml, presets
from flows.pipeline.experiments import NAME

LARGEST_SEED = 2**53 - 1  # a browser's largest whole number


def _choice(names: Iterable[str]) -> Any:
    """The schema of one of some names; of any text where none are known."""
    known: list[JsonValue] = list(names)
    return Field(json_schema_extra={"enum": known} if known else {})


def _stages() -> list[str]:
    """The stages of dvc.yaml in the working folder; one that stands for several has the name of all."""
    try:
        found = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
        return [str(name) for name in found]
    except (OSError, YAMLError, KeyError, TypeError):
        return []


def _sections() -> str:
    """A pattern of what a dotted key may begin with."""
    try:
        return "|".join(load_yaml(FILE))
    except ParamsError:
        return "[A-Za-z0-9_-]+"


DOTTED = rf"({_sections()})(\.[A-Za-z0-9_-]+)*"
Key = Annotated[str, Field(pattern=rf"^\s*{DOTTED}\s*=", max_length=10_000)]
Mapped = Annotated[dict[str, Any], Field(json_schema_extra={"propertyNames": {"pattern": f"^{DOTTED}$"}})]

AS_IS, NOTHING = str(FILE), list[Any]()
Preset = Annotated[str, _choice((AS_IS, *presets()))]
Stage = Annotated[str, _choice(_stages())]
Stages = Annotated[list[Stage], Field(max_length=100)]
Rounds = Annotated[int, Field(ge=0, le=9)]
Nfe = Annotated[
    list[Annotated[int, Field(ge=1, le=1024)]],
    Field(max_length=16, json_schema_extra={"uniqueItems": True}),
]
Seed = Annotated[int, Field(ge=-1, le=LARGEST_SEED)]
Overrides = Annotated[list[Key], Field(max_length=200)] | Mapped
Name = Annotated[str, Field(pattern=f"^({NAME.pattern})?$")]
Retries = Annotated[int, Field(ge=0, le=5)]
Hours = Annotated[float, Field(ge=0, le=1000)]
Grid = Annotated[
    dict[str, Annotated[list[Any], Field(min_length=1, max_length=64)]],
    Field(min_length=1, max_length=6, json_schema_extra={"propertyNames": {"pattern": f"^{DOTTED}$"}}),
]


def chosen(preset: str) -> str | None:
    """The preset, None for params.yaml."""
    return None if preset == AS_IS else preset


def limit(hours: float) -> float | None:
    """The seconds that a stage may take, None for no limit."""
    return 3600 * hours or None
