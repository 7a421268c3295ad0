"""What somebody may ask for, found: a file, a digest, a run, a registered version, an experiment."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flows.layout import MODELS
from flows.watch.digests import OUT
from flows.watch.runs import STAGE
from flows.watch.store import clean
from flows.where.checkout import Checkout, Experiment, Out
from flows.where.records import Records

VERSION = re.compile(r"(models:/)?(?P<name>[\w. -]+)(/(?P<number>\d+)|@(?P<alias>[\w.-]+))")
DIGEST = re.compile(r"[0-9a-f]{8,64}(\.dir)?")
RUN = re.compile(r"[0-9a-f]{32}")
FLOW_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NAME = re.compile(r"[\w.-]+")
PIPELINE = "pipeline"


Way = Callable[[Checkout, Records, str, list[str]], "Found | None"]


class Unknown(ValueError):
    """Nothing is called that; the message says in a line what was looked for."""


class Found(NamedTuple):
    """What was asked for, as far as it is known by itself.

    Main arguments:
        outs: the outputs it is about; a whole pipeline's if `whole`.
        file: the path that was asked for, an output or in one.
        run: MLflow's run that made it.
        pipeline: MLflow's run of the pipeline.
        version: the registered version.
        stage: that it is about, where no output says so.
        flow_run: Prefect's run, if that was asked for, and what Prefect says of it.
        experiment: DVC's experiment.
    """

    outs: tuple[Out, ...] = ()
    file: str = ""
    run: Any = None
    pipeline: Any = None
    version: Any = None
    stage: str = ""
    flow_run: tuple[str, dict[str, Any]] | None = None
    experiment: Experiment | None = None
    whole: bool = False


def find(checkout: Checkout, records: Records, thing: str) -> Found:
    """What is called `thing`.

    Raises:
        Unknown: if nothing is.
    """
    if thing.startswith("models:/") and not VERSION.fullmatch(thing):
        raise Unknown(f"{thing}: expected models:/NAME/NUMBER or models:/NAME@ALIAS")
    looked: list[str] = []
    ways: list[Way] = [_flow_run, _digest, _version, _experiment]
    if not thing.startswith("models:/"):
        ways.insert(0, _file)
    for way in ways:
        if found := way(checkout, records, thing, looked):
            known = found.experiment or _experiment_of(checkout, found)
            return found._replace(experiment=known)
    if records.problem:
        looked.append(f"MLflow ({records.problem})")
    raise Unknown(f"{thing}: unknown; looked for {', '.join(looked)}")


def _experiment_of(checkout: Checkout, found: Found) -> Experiment | None:
    """The DVC experiment that made it, None if none did or if it is removed."""
    return checkout.experiments.get(found.run.data.tags.get("dvc.exp", "")) if found.run is not None else None


def _file(checkout: Checkout, records: Records, thing: str, looked: list[str]) -> Found | None:
    """An output, or a file in one; a path is relative to where this runs, or to the checkout."""
    looked.append(f"an output among the {len(checkout.outs)} of dvc.lock")
    lacking = ""  # the output that would hold it
    for path in (Path(os.path.abspath(thing)), checkout.root / thing):
        if not path.is_relative_to(checkout.root):
            continue
        file = path.relative_to(checkout.root)
        for part in (file, *file.parents):
            if out := checkout.outs.get(str(part)):
                if not _is_in(checkout, out, file):
                    lacking = lacking or out.path
                    break
                run = next(iter(records.made(out.path, out.md5)), None)
                return Found((out,), str(file), run, records.above(run) if run else None)
        if _exists(path) and path != checkout.root:
            known = _listed(sorted(checkout.outs)) or "none yet"
            raise Unknown(f"{thing}: no output of a stage; dvc.lock has {known}")
    if lacking:
        raise Unknown(f"{thing}: no such file in the output {lacking}, neither here nor in DVC's cache")
    return None


def _is_in(checkout: Checkout, out: Out, file: Path) -> bool:
    """Whether a file is in an output, or was; of one that lies neither here nor in the cache nobody can tell."""
    if str(file) == out.path or _exists(checkout.root / file):
        return True
    known = [Path(name) for name in checkout.files(out.md5)]
    if known:
        inner = file.relative_to(out.path)
        return any(inner == name or inner in name.parents for name in known)
    return out.md5.endswith(".dir") and not _exists(checkout.root / out.path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def _flow_run(checkout: Checkout, records: Records, thing: str, looked: list[str]) -> Found | None:
    """A run of Prefect's, of a stage or of a pipeline."""
    if not FLOW_RUN.fullmatch(thing):
        return None
    looked += ["an MLflow run that names this run of Prefect's", "the run in the Prefect API of this checkout"]
    said = records.flow_run(thing)
    if told := records.told(thing):
        name, run = told
        if name == PIPELINE:
            return _whole(checkout, records, run)._replace(flow_run=(thing, said))
        outs = tuple(out for out in _outs_of(checkout, run) if clean(out.stage) == name)
        return Found(outs, "", run, records.above(run), stage=_real(checkout, name), flow_run=(thing, said))
    if not said:
        return None
    experiment = checkout.experiments.get(str(said.get("labels", {}).get("fmcore.experiment", "")))
    if experiment:
        return _of_experiment(checkout, records, experiment)._replace(flow_run=(thing, said))
    stage = next((tag.removeprefix("dvc:") for tag in said.get("tags", []) if tag.startswith("dvc:")), "")
    return Found(stage=stage, flow_run=(thing, said))


def _digest(checkout: Checkout, records: Records, thing: str, looked: list[str]) -> Found | None:
    """DVC's digest of an output, the SHA-256 in a manifest, or an MLflow run's id; its beginning will do."""
    if not DIGEST.fullmatch(thing):
        return None
    looked.append("a digest in dvc.lock, its outputs' manifests, DVC's experiments, MLflow's runs and versions")
    for out in checkout.outs.values():
        if out.md5.startswith(thing):
            return _file(checkout, records, out.path, looked)
    if RUN.fullmatch(thing):
        looked.append("an MLflow run")
        if run := records.run(thing):
            return _of_run(checkout, records, run)
    if version := records.with_weights(thing):
        return _of_version(checkout, records, version)
    if told := records.with_digest(thing):
        path, run = told
        outs = tuple(out for out in _outs_of(checkout, run) if out.path == path)
        return Found(outs, "", run, records.above(run))
    for experiment in checkout.experiments.values():
        for out in checkout.outs_at(experiment.commit).values():
            if out.md5.startswith(thing):
                return Found((out,), experiment=experiment)
    for out in checkout.outs.values():
        if str(checkout.manifest(out.md5).get("sha256", "")).startswith(thing):
            return _file(checkout, records, out.path, looked)
    return None


def _version(checkout: Checkout, records: Records, thing: str, looked: list[str]) -> Found | None:
    """A registered version, by number or alias."""
    wanted = VERSION.fullmatch(thing)
    if wanted is None:
        return None
    looked.append("a version in MLflow's registry")
    found = records.version(wanted["name"], wanted["number"] or "", wanted["alias"] or "")
    return _of_version(checkout, records, found) if found else None


def _experiment(checkout: Checkout, records: Records, thing: str, looked: list[str]) -> Found | None:
    """A DVC experiment, also one that is removed but that MLflow remembers."""
    if not NAME.fullmatch(thing):
        return None
    looked.append(f"a DVC experiment ({_listed(sorted(checkout.experiments)) or 'there is none'})")
    if experiment := checkout.experiments.get(thing):
        return _of_experiment(checkout, records, experiment)
    run = records.pipeline_of(thing)
    return _whole(checkout, records, run) if run else None


def _of_experiment(checkout: Checkout, records: Records, experiment: Experiment) -> Found:
    run = records.pipeline_of(experiment.name)
    outs = tuple(checkout.outs_at(experiment.commit).values())
    return Found(outs, run=run, pipeline=run, experiment=experiment, whole=True)


def _of_version(checkout: Checkout, records: Records, version: Any) -> Found:
    """The model of a version, whose weights may have been made before its run's were."""
    run = records.run(version.run_id) if version.run_id else None
    path = str(MODELS / version.tags.get("fmcore.model", ""))
    outs = tuple(out for out in _outs_of(checkout, run) if out.path == path) if run else ()
    return Found(outs, "", run, records.above(run) if run else None, version, version.tags.get("fmcore.stage", ""))


def _of_run(checkout: Checkout, records: Records, run: Any) -> Found:
    if run.data.tags.get("fmcore.kind") == PIPELINE:
        return _whole(checkout, records, run)
    return Found(tuple(_outs_of(checkout, run)), "", run, records.above(run))


def _whole(checkout: Checkout, records: Records, run: Any) -> Found:
    """A whole pipeline, with what all of its models' runs say was made."""
    outs = [out for each in (run, *records.below(run)) for out in _outs_of(checkout, each)]
    return Found(tuple(outs), "", run, run, whole=True)


def _outs_of(checkout: Checkout, run: Any) -> list[Out]:
    """What the stages of a run made, models first; DVC's record here says which stage makes which path."""
    made = {key.removeprefix(OUT): value for key, value in run.data.tags.items() if key.startswith(OUT)}
    outs = []
    for path, md5 in sorted(made.items(), key=lambda item: (not item[0].startswith(f"{MODELS}/"), item[0])):
        known = checkout.outs.get(path)
        stage = known.stage if known else ""
        outs.append(known if known and known.md5 == md5 else Out(path, md5, stage))
    stages = [key for key in run.data.tags if key.startswith(STAGE)]
    if len(stages) == 1:  # then no other can have made them
        outs = [out if out.stage else out._replace(stage=stages[0].removeprefix(STAGE)) for out in outs]
    return outs


def _real(checkout: Checkout, cleaned: str) -> str:
    """A stage's name as DVC has it: MLflow's alphabet lacks the @ of `reflow@r1`."""
    return next((out.stage for out in checkout.outs.values() if clean(out.stage) == cleaned), cleaned)


def _listed(words: list[str], most: int = 12) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
