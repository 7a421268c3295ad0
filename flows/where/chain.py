"""The chain of a thing in lines, and the commands that make it again."""

import ast
import json
import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from flows.registry.card import DIGITS, SHA
from flows.watch.digests import DEP, OUT
from flows.watch.naming import PAGE
from flows.watch.runs import STAGE
from flows.watch.store import clean
from flows.where.checkout import Checkout, Out
from flows.where.finding import PIPELINE, Found
from flows.where.records import Records

Line = tuple[str, str]
DATASET = "dataset"


def lines(checkout: Checkout, records: Records, found: Found) -> list[Line]:
    """What is known, each line with its name, from the data to the registered version."""
    tags = _tags(found)
    return [
        ("data", _data(found, tags)),
        *(("reads", f"{path}, md5 {md5}") for path, md5 in _inputs(found)),
        ("code", _code(checkout, found, tags)),
        ("params", _params(found, tags)),
        ("stage", _stage(found, tags)),
        *(("artifact", _artifact(checkout, found, out)) for out in found.outs),
        *(("MLflow", text) for text in _mlflow(records, found)),
        *(("Prefect", text) for text in _prefect(found)),
        *(("version", text) for text in _versions(checkout, records, found)),
    ]


def commands(checkout: Checkout, found: Found) -> list[Line]:
    """What makes it again: commands, each with what there is to know of it."""
    tags = _tags(found)
    return [
        *_code_again(checkout, found, tags),
        *_params_again(checkout, found, tags),
        *(
            (f"dvc checkout {out.path}", _bytes(checkout, out))
            for out in _single(found)
            if _is_current(checkout, out)
        ),
    ]


def _single(found: Found) -> tuple[Out, ...]:
    """The outputs, but not a whole pipeline's, which are too many to tell more of."""
    return () if found.whole else found.outs


def _tags(found: Found) -> dict[str, str]:
    """What MLflow's runs say, the stage's own over its pipeline's."""
    runs = [run for run in (found.pipeline, found.run) if run is not None]
    return {key: value for run in runs for key, value in run.data.tags.items()}


def _data(found: Found, tags: dict[str, str]) -> str:
    digest = next((md5 for path, md5 in _read(found) if path == DATASET), "")
    digest = digest or tags.get(f"{DEP}{DATASET}", "") or tags.get(f"{OUT}{DATASET}", "")
    named = tags.get("fmcore.data", "")
    if not named and not digest:
        return "not recorded"
    return ", ".join(filter(None, [named or "without a name", digest and f"{DATASET} {digest}"]))


def _read(found: Found) -> list[tuple[str, str]]:
    return [item for out in found.outs for item in out.inputs]


def _inputs(found: Found) -> list[tuple[str, str]]:
    """What the stage of a single output read besides the data."""
    return [] if found.whole or len(found.outs) != 1 else [item for item in _read(found) if item[0] != DATASET]


def _code(checkout: Checkout, found: Found, tags: dict[str, str]) -> str:
    if commit := tags.get("mlflow.source.git.commit"):
        branch, dirty = tags.get("mlflow.source.git.branch", ""), tags.get("fmcore.dirty", "no")
        edits = "nothing uncommitted" if dirty == "no" else f"with uncommitted edits of {dirty}"
        return f"commit {commit}" + (f" ({branch})" if branch else "") + f", {edits}"
    if found.experiment:
        return f"commit {found.experiment.baseline}, and what experiment {found.experiment.name} changes in it"
    for out in found.outs[:1]:
        if since := checkout.since(out.md5):
            return f"dvc.lock has this digest since commit {since}; no run says more"
    return "not recorded: no run of MLflow's is known"


def _params(found: Found, tags: dict[str, str]) -> str:
    if not (digest := tags.get("fmcore.params")):
        return "not recorded in a run"
    preset, differs = tags.get("fmcore.preset", ""), tags.get("fmcore.differs", "").split("\n")
    keys = ", ".join(filter(None, differs))
    about = f"preset {preset}" + (f" but for {keys}" if keys else ", unchanged") if preset else "near no preset"
    return f"digest {digest}, {about}"


def _stage(found: Found, tags: dict[str, str]) -> str:
    names = _stages(found)
    if found.whole or not names:
        names = names or ["not known"]
        return "all of the pipeline" if found.whole else names[0]
    return "; ".join(f"{name}{_ended(tags.get(clean(STAGE + name), ''))}" for name in names)


def _stages(found: Found) -> list[str]:
    names = list(dict.fromkeys(out.stage for out in found.outs if out.stage))
    return names or ([found.stage] if found.stage else [])


def _ended(told: str) -> str:
    """As in ` (finished, begun 2026-11-29 21:00 UTC)`."""
    status, _, began = told.partition(" ")
    return f" ({status.lower()}, begun {datetime.fromisoformat(began):%Y-%m-%d %H:%M} UTC)" if began else ""


def _artifact(checkout: Checkout, found: Found, out: Out) -> str:
    text = f"{out.path}, md5 {out.md5}" + (f", by {out.stage}" if len(_stages(found)) > 1 and out.stage else "")
    if not _is_current(checkout, out):
        other = checkout.outs.get(out.path)
        return text + (" (not here)" if other is None else f" (here is another: md5 {other.md5[:DIGITS]})")
    file = found.file if found.file and found.file != out.path else ""
    within = f"; in it {file.removeprefix(out.path).strip('/')}" if file else ""
    word = "" if found.whole else checkout.differs(out, file)
    return text + within + (f" ({word})" if word else "")


def _is_current(checkout: Checkout, out: Out) -> bool:
    known = checkout.outs.get(out.path)
    return known is not None and known.md5 == out.md5


def _mlflow(records: Records, found: Found) -> Iterator[str]:
    runs = {run.info.run_id: run for run in (found.run, found.pipeline) if run is not None}
    for run in runs.values():
        above = " (pipeline)" if run is found.pipeline else ""
        link = records.page(run)
        yield f"{run.info.run_name}{above}, run {run.info.run_id}" + (f"\n{link}" if link else "")
    if not runs:
        yield records.problem or ("no run has this digest" if _single(found) else "no run is known")


def _prefect(found: Found) -> Iterator[str]:
    """Where Prefect's page shows the stages' runs and the pipeline's."""
    tags, said = _tags(found), found.flow_run
    told = {name: tags.get(clean(PAGE + name), "") for name in [*_stages(found), PIPELINE]}
    pages = {name: url for name, url in told.items() if url and not (found.whole and name != PIPELINE)}
    for name, url in pages.items():
        yield f"{name}, run {url.rpartition('/')[2]}\n{url}"
    if said and not any(url.endswith(said[0]) for url in pages.values()):
        yield f"{said[1].get('name', 'a run')}, run {said[0]}"
    elif not pages:
        yield "no run is known: no Prefect API was told"


def _versions(checkout: Checkout, records: Records, found: Found) -> Iterator[str]:
    """The registered version of a model; of a whole pipeline, those of all its models."""
    made = [found.version] if found.version is not None else []
    if found.whole and found.pipeline is not None:
        made = [records.version_of(run) for run in records.below(found.pipeline)]
    elif not made and (models := [out for out in _single(found) if out.path.startswith("models/")]):
        (out, *_) = models
        made = [records.version_of(found.run, str(checkout.manifest(out.md5).get("sha256", "")))]
    for version in sorted(filter(None, made), key=lambda version: int(version.version)):
        aliases = ", ".join(records.aliases(version))
        weights = version.tags.get(SHA, "")[:DIGITS]
        text = f"{version.name}/{version.version} ({version.tags.get('fmcore.model', 'model')}"
        yield text + (f", {aliases}" if aliases else "") + f"), weights {weights}"
    if made and not any(made) and not records.problem:
        yield "none: the registry does not have this model"


def _code_again(checkout: Checkout, found: Found, tags: dict[str, str]) -> Iterator[Line]:
    commit = found.experiment.baseline if found.experiment else tags.get("mlflow.source.git.commit", "")
    if not commit:
        return
    dirty = tags.get("fmcore.dirty", "no")
    lacks = "" if dirty == "no" or found.experiment else f"lacks what was not committed: {dirty}"
    if checkout.state is None or checkout.state.commit != commit or lacks:
        yield f"git checkout {commit}", lacks


def _params_again(checkout: Checkout, found: Found, tags: dict[str, str]) -> Iterator[Line]:
    """An experiment is applied; parameters that no commit has are given again; else DVC knows the stage."""
    stages = "" if found.whole else " ".join(["", *_stages(found)])
    name = tags.get("dvc.exp", "")
    if found.experiment:
        yield f"dvc exp apply {found.experiment.name}", ""
        yield f"dvc repro{stages}", "what DVC's cache has is taken from there"
    elif name or "params.yaml" in tags.get("fmcore.dirty", ""):
        why = f"experiment {name} is removed" if name else "the parameters were not committed"
        without = [word for word in tags.get("fmcore.differs", "").split("\n") if word.startswith("no ")]
        yield f"python -m flows.pipeline{stages}{_given(found, tags)}", "; ".join([why, *without])
    else:
        yield f"dvc repro{stages}", "what DVC's cache has is taken from there"


def _given(found: Found, tags: dict[str, str]) -> str:
    """Preset and keys as `python -m flows.pipeline` takes them."""
    params: dict[str, Any] = found.pipeline.data.params if found.pipeline else {}
    keys = [word.partition("=")[0] for word in tags.get("fmcore.differs", "").split("\n") if "=" in word]
    values = [f" --set {shlex.quote(f'{key}={_yaml(params[key])}')}" for key in keys if key in params]
    preset = tags.get("fmcore.preset", "")
    return (f" --preset {preset}" if preset else "") + "".join(values)


def _yaml(text: str) -> str:
    """A parameter as MLflow has it, which is Python's text, as YAML.

    >>> _yaml("None"), _yaml("[1, 2]"), _yaml("heun"), _yaml("0.001")
    ('null', '[1, 2]', 'heun', '0.001')
    """
    try:
        return json.dumps(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError):
        return text


def _bytes(checkout: Checkout, out: Out) -> str:
    return (
        "its bytes, from DVC's cache" if checkout.cached(out.md5).exists() else "DVC's cache here lacks its bytes"
    )
