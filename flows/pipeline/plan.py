"""What there is to do, as DVC says: the stages of dvc.yaml in order, and why each of them has to run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from fmcore.flow.errors import one_line

SHOWN = 4  # of the things that changed
ALWAYS = "always changed"
ALWAYS_RUNS = "it runs every time"
HAPPENED = {"modified": "changed", "deleted": "is missing", "new": "is new", "not in cache": "is not in the cache"}


class Planned(NamedTuple):
    """A stage: those it depends on, and whether it runs even if nothing has changed."""

    parents: tuple[str, ...]
    always: bool


def plan(root: Path, stages: Sequence[str] | None, *, alone: bool = False) -> dict[str, Planned]:
    """Each stage to visit, in an order in which none comes before one that it depends on.

    A name may be a group, such as `reflow` for `reflow@r1` and `reflow@r2`. Those they
    depend on come along, unless they are to run `alone`.

    Raises:
        ValueError: if there is no such stage.
    """
    try:
        with Repo(str(root)) as repo:
            graph = repo.index.graph
            needs = {
                stage.name: Planned(
                    tuple(parent.name for parent in graph.successors(stage) if parent.cmd),
                    bool(stage.always_changed),
                )
                for stage in networkx.dfs_postorder_nodes(graph)
                if stage.cmd
            }
    except DvcException as error:
        raise ValueError(one_line(error)) from None
    if stages is None:
        return needs
    wanted = [name for target in stages for name in matching(target, needs)]
    for name in () if alone else wanted:
        wanted += [parent for parent in needs[name].parents if parent not in wanted]
    return {name: stage for name, stage in needs.items() if name in wanted}


def matching(target: str, names: Mapping[str, object]) -> list[str]:
    """The stages that a name stands for.

    Raises:
        ValueError: if there is none.
    """
    found = [name for name in names if name == target or name.startswith(f"{target}@")]
    if not found:
        raise ValueError(f"dvc.yaml has no stage {target!r}, it has {', '.join(names)}")
    return found


def changes(root: Path) -> dict[str, str] | None:
    """What has changed of each stage that has, in words; None if DVC does not tell, e.g. while another one works.

    Of a stage that is left out nothing has changed: it runs only if one that it depends on makes other outputs.
    """
    try:
        with Repo(str(root)) as repo:
            found = repo.status()
    except (LockError, DvcException):
        return None
    # DVC adds the way to dvc.yaml, seen from the folder of this process.
    return {name.rpartition(":")[2]: told(entries) for name, entries in found.items()}


def told(entries: Sequence[Any]) -> str:
    """DVC's findings on a stage in words.

    >>> told([{"changed deps": {"params.yaml": {"base.train.lr": "modified"}, "models/base": "deleted"}}])
    'base.train.lr changed, models/base is missing'
    """
    words = list(_words(entries))
    if f"params.yaml {HAPPENED['new']}" in words:  # DVC knows of no values that it ran with
        return "it has not run here yet"
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _words(entries: Sequence[Any]) -> Iterator[str]:
    for entry in entries:
        if entry == ALWAYS:
            yield ALWAYS_RUNS
        elif isinstance(entry, str):
            yield entry
        else:
            for what in entry.values():
                yield from _each(what)


def _each(what: Mapping[str, Any]) -> Iterator[str]:
    for name, happened in what.items():
        if isinstance(happened, Mapping):  # a file of parameters
            yield from _each(happened)
        else:
            yield f"{name} {HAPPENED.get(happened, happened)}"
