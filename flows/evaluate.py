"""Stages `evaluate@MODEL` and `evaluate_pairs@ROUND`: scores of models over solvers and NFE, and of couplings.

The couplings' distance to the data is what a student of theirs can reach at best.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from flows import layout
from flows.events import Events, Metrics, Picture, Progress, Table
from flows.looks import (
    SHOWN_IMAGES,
    SHOWN_POINTS,
    Bends,
    Look,
    flops,
    likelihood,
    looked_up,
    rebuilt,
    strips,
)
from flows.params import Params
from flows.setup import device_of, eager, prepared
from flows.sweep import (
    Batch,
    Row,
    Run,
    Scored,
    finest,
    keep,
    kept,
    noise_of,
    rows_of,
    runs_for,
    sampled,
    write_scores,
)
from flows.work import publish, workspace, write_table
from fmcore.couplings import Sharded
from fmcore.features import Extractor, Reference, load_extractor, load_reference
from fmcore.pictures import sample_picture
from fmcore.pixels import floats, quantise
from fmcore.scoring import ImageScorer, PointScorer, Score, Scorer
from fmcore.store import (
    Model,
    load_model,
    map_pairs,
    read_json,
    read_tensors,
    write_file,
    write_json,
    write_tensors,
)

ADAPTIVE_NFE = 100  # what an adaptive run is reckoned to take, for the bar and for whether compiling pays


def _judge(params: Params, device: torch.device) -> tuple[Extractor, Reference] | Tensor:
    """What samples are compared by: an extractor and the data under it, or the points held out."""
    file, section = layout.FEATURES / "reference.safetensors", params.features
    if params.is_points:
        return read_tensors(file)["x1"]
    function = section.extractor if ":" in section.extractor else None
    extractor = load_extractor(layout.FEATURES, device, section.weights, function)
    return extractor, load_reference(file, extractor.dims)


def _scorer(judge: tuple[Extractor, Reference] | Tensor, params: Params, count: int) -> Scorer:
    metrics = params.evaluate.metrics
    if isinstance(judge, Tensor):
        return PointScorer(judge, metrics, params.seed)
    return ImageScorer(count, *judge, metrics, params.seed)


def evaluate(params: Params, name: str) -> Events:
    """Scores model `name`; a kill loses one run."""
    device, section = device_of(params), params.evaluate
    recipe = params.model_dump(mode="json", include={"seed", "device", "precision", "compile", "data", "evaluate"})
    inputs = [layout.model(name), layout.FEATURES]
    model = load_model(inputs[0], device)
    labels = params.data.load().label if model.num_classes is not None else None
    runs = runs_for(model, section)
    evaluations = {run: section.samples * (run.nfe or ADAPTIVE_NFE) for run in runs}
    total = section.repeats * sum(evaluations.values())
    yield prepared(params, model, total)
    best, noise, judge = finest(runs), noise_of(model, params, labels), _judge(params, device)
    scored: list[Scored] = []
    shown: dict[str, Tensor] = {}
    with workspace(f"evaluate@{name}", recipe, inputs) as work:
        # In evaluations, since a run of many takes that much longer: else the time left would be far off.
        bar = partial(Progress, f"score {name}", total=total, unit="evaluations")
        done = sum(
            evaluations[run]
            for run, repeat in product(runs, range(section.repeats))
            if _kept(work, run, repeat).exists()
        )
        yield bar(done=done)
        for run in runs:
            repeats, spent = [], 0
            for repeat in range(section.repeats):
                path = _kept(work, run, repeat)
                if not path.exists():
                    looks = Look(params, run) if run == best and repeat == 0 else None
                    batches = sampled(
                        model.field(params.precision),
                        params,
                        run,
                        repeat,
                        noise,
                        bends=looks is not None and "grid" not in model.manifest,
                    )
                    for part in _score(batches, judge, model, params, name, looks, path):
                        yield bar(done=done + evaluations[run] * part // section.samples)
                    done += evaluations[run]
                scores, nfe = kept(path)
                repeats.append(scores)
                spent += nfe
            # Only the first repeat is looked at, so what it alone has is a row of its own.
            common = min(len(scores) for scores in repeats)
            about = {"model": name, "rounds": model.manifest["rounds"], "run": run, "seed": params.seed}
            nfe = round(spent / section.repeats)
            found = rows_of([scores[:common] for scores in repeats], nfe=nfe, **about)
            found += rows_of([repeats[0][common:]], nfe=nfe, **about)
            scored += found
            key = run.solver if run.grid in (None, best.grid) else f"{run.solver}.{run.grid_name}"
            for row, _ in found:
                yield Metrics(row.nfe, {f"{row.metric}.{key}": row.value})
            tensors = read_tensors(_kept(work, run, 0).with_suffix(".safetensors"))
            if run.solver == "euler" and run.grid == best.grid:
                shown[f"euler.{run.nfe:04d}"] = tensors.pop("shown")
                picture = work / f"samples-{run.nfe:04d}.png"
                sample_picture(floats(shown[f"euler.{run.nfe:04d}"]), picture)
                yield Picture(f"samples-nfe-{run.nfe:04d}", picture)
            if run == best:
                shown |= {key: value for key, value in tensors.items() if key != "bends"}
        if section.likelihood and "grid" not in model.manifest:
            path = work / "likelihood.json"
            if not path.exists():
                for event in likelihood(
                    eager(model), params, name, best, "points" if params.is_points else "images"
                ):
                    if isinstance(event, Score):
                        keep(path, [event], section.likelihood.nfe)
                    else:
                        yield event
            run = best._replace(solver=section.likelihood.solver)
            found = rows_of([kept(path)[0]], nfe=section.likelihood.nfe, **{**about, "run": run})
            scored += found
            yield Metrics(found[0].row.nfe, {found[0].row.metric: found[0].row.value})
        out = work / "out"
        write_scores(out, scored)
        if "grid" not in model.manifest:
            lines = read_tensors(_kept(work, best, 0).with_suffix(".safetensors"))["bends"].tolist()
            write_table(out / "bends.csv", Bends._fields, lines)
            for t, _, value, _ in lines:
                yield Metrics(round(1000 * t), {"bend_at_1000t": value})
        write_json(out / "about.json", {"flops": flops(model)})
        write_tensors(out / "samples.safetensors", shown)
        publish(out, layout.scores(name))
        yield Table("scores", [dict(zip(Row._fields[:9], one.row[:9], strict=True)) for one in scored])


def _kept(work: Path, run: Run, repeat: int) -> Path:
    return work / f"{run.solver}-{run.nfe:04d}-{run.grid_name}-{repeat}.json"


def _score(
    batches: Iterator[Batch],
    judge: tuple[Extractor, Reference] | Tensor,
    model: Model,
    params: Params,
    name: str,
    look: Look | None,
    path: Path,
) -> Iterator[int]:
    """Scores one repeat of a run into the file `path`, tensors beside it; yields the samples done so far."""
    scorer = _scorer(judge, params, params.evaluate.samples)
    done, evaluations = 0, 0
    shown: list[Tensor] = []
    finite = torch.ones((), dtype=torch.bool, device=model.device)
    for batch in batches:
        x1 = batch.x1
        finite &= torch.isfinite(x1).all()  # looked at when all is done: nothing waits for the device here
        scorer.add(x1 if params.is_points else quantise(x1))
        missing = (SHOWN_POINTS if params.is_points else SHOWN_IMAGES) - sum(map(len, shown))
        if missing > 0:
            shown.append((x1[:missing] if params.is_points else quantise(x1[:missing])).cpu())
        if look is not None:
            look.add(batch)
        done += len(x1)
        evaluations += batch.nfe * len(x1)
        yield done
    if not finite:
        raise FloatingPointError(f"{name} made samples that are not finite: it diverged")
    scores, tensors = scorer.scores(), {"shown": torch.cat(shown)}
    if look is not None:
        data, aside = params.data.load(), eager(model)
        tensors |= look.tensors
        scores += look.scores()
        if look.bent:
            tensors["bends"] = torch.tensor(look.bends(), dtype=torch.float64)
            scores += rebuilt(aside, params, look, data)
        if not isinstance(judge, Tensor):
            copied, found = looked_up(look, *judge, data)
            scores += copied
            labels = data.label if model.num_classes is not None else None
            tensors |= found | {"strips": strips(aside, params, look.run, labels)}
    write_tensors(path.with_suffix(".safetensors"), tensors)
    keep(path, scores, round(evaluations / done))


def evaluate_pairs(params: Params, name: str) -> Events:
    """Scores the stored samples of the couplings that round `name` trains on."""
    device, section, folder = device_of(params), params.evaluate, layout.couplings(name)
    parts, manifest = map_pairs(folder)
    judge, count = _judge(params, device), min(section.samples, sum(len(part.x0) for part in parts))
    scorer, what = _scorer(judge, params, count), f"score couplings {name}"
    recipe = params.model_dump(mode="json", include={"seed", "device", "data", "evaluate"})
    with workspace(f"evaluate_pairs@{name}", recipe, [folder, layout.FEATURES]) as work:
        yield Progress(what, 0, count, "pairs")
        stored, done = Sharded(parts), 0
        for rows in torch.split(torch.arange(count), section.batch):
            batch = floats(stored.at(rows).x1).to(device)
            scorer.add(batch if params.is_points else quantise(batch))
            done += len(rows)
            yield Progress(what, done, count, "pairs")
        couple = params.couple_of(name)
        made = Run(couple.solver, couple.grid, couple.nfe)
        found = rows_of(
            [scorer.scores()],
            model=layout.coupled(name),
            rounds=manifest["rounds"],
            run=made,
            nfe=manifest["network_evaluations"],
            seed=params.seed,
        )
        out = work / "out"
        write_scores(out, found)
        for file in ("quality.json", "histograms.csv"):
            write_file(out / file, (folder / file).read_bytes())
        publish(out, layout.scores(layout.coupled(name)))
        for row, _ in found:
            yield Metrics(0, {f"couplings.{row.metric}": row.value})
        yield Table("quality", [read_json(folder / "quality.json")])
