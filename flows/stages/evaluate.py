"""Stages `evaluate_base`, `evaluate@ROUND`, `evaluate_student@STUDENT`: a model's scores over solvers and NFE."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flows import layout
from flows.events import Event, Events, Metrics, Progress, Table, samples_at, scored
from flows.params.schema import Params
from flows.scores.judging import Decoding, Judge, decoding_of, judge_of, scorer_of
from flows.scores.probes import (
    Bends,
    Look,
    flops,
    likelihood,
    looked_up,
    rebuilt,
    shown_of,
    strips,
)
from flows.scores.sweep import ADAPTIVE_NFE, Batch, Noise, finest, noise_of, sampled, samplings_of
from flows.scores.table import Row, Scored, keep_scores, kept_scores, rows_of, write_scores
from flows.workshop.entry import Stage
from flows.workshop.setup import device_of, eager, set_up
from flows.workshop.workspace import publish, workspace, write_table
from fmcore.disk.dataset import Dataset, load_dataset
from fmcore.disk.files import write_file, write_json, write_tensors
from fmcore.disk.kept import keep_tensors, kept_tensors
from fmcore.flow.ranks import ranks, shared_out
from fmcore.models.folder import Trained, load_model
from fmcore.ode.sampling import Sampling
from fmcore.pictures import quick_picture
from fmcore.score.scoring import Score

WAIT_SECONDS = 0.2  # from one look for the others' scores to the next


class Scoring(NamedTuple):
    """A model and all that scoring it needs; `best` is the finest Euler run, which the probes look at."""

    params: Params
    name: str
    work: Path
    model: Trained
    data: Dataset
    judge: Judge
    decode: Decoding
    noise: Noise
    best: Sampling

    @property
    def labels(self) -> Tensor | None:
        """The classes that samples are drawn from, as frequent as in the data."""
        return self.data.label if self.model.num_classes is not None else None

    def kept(self, how: Sampling, repeat: int) -> Path:
        """Where the scores of one repeat lie, tensors beside them."""
        return self.work / f"{how.solver}-{how.nfe:04d}-{how.grid_name}-{repeat}.json"

    def is_there(self, how: Sampling, repeat: int) -> bool:
        """Whether a repeat was scored."""
        path = self.kept(how, repeat)
        return path.exists() and path.with_suffix(".safetensors").exists()

    def is_scored(self, how: Sampling) -> bool:
        """Whether all repeats were."""
        return all(self.is_there(how, repeat) for repeat in range(self.params.evaluate.repeats))

    def cost(self, how: Sampling) -> int:
        """Network evaluations of one repeat."""
        return self.params.evaluate.samples * (how.nfe or ADAPTIVE_NFE)

    def done(self, parts: Iterable[tuple[Sampling, int]]) -> int:
        """Evaluations of the repeats that were scored."""
        return sum(self.cost(how) for how, repeat in parts if self.is_there(how, repeat))

    def rows(self, repeats: list[list[Score]], how: Sampling, nfe: int) -> list[Scored]:
        """The rows of scores.csv."""
        rounds = self.model.manifest["rounds"]
        return rows_of(repeats, model=self.name, rounds=rounds, how=how, nfe=nfe, seed=self.params.seed)


def evaluate(params: Params, stage: Stage) -> Events:
    """Scores the model; a kill loses at most one repeat of one way to sample."""
    device, section = device_of(params), params.evaluate
    model, data = load_model(layout.model(stage.name), device), load_dataset(layout.DATASET)
    samplings = samplings_of(section, k=model.k, paired=model.is_paired)
    labels = data.label if model.num_classes is not None else None
    noise, judge = noise_of(model, params, labels), judge_of(params, device)
    with workspace(stage, params) as work:
        decode = decoding_of(params, device)
        of = Scoring(params, stage.name, work, model, data, judge, decode, noise, finest(samplings))
        total = section.repeats * sum(map(of.cost, samplings))
        yield set_up(params, model, total)
        # Counted in evaluations: a count of samples would mislead, since those of many steps take longer.
        bar = partial(Progress, "score", total=total, unit="evaluations", of=stage.name)
        found: list[Scored] = []
        shown: dict[str, Tensor] = {}
        for how in _in_turn(of, samplings):
            if isinstance(how, int):
                yield bar(done=how)
                continue
            rows = _rows(of, how)
            found += rows
            grid = "" if how.grid in (None, of.best.grid) else how.grid_name
            for row, _ in rows:
                yield scored(row.metric, row.value, nfe=row.nfe, solver=row.solver, grid=grid)
            shown |= yield from _shown(of, how)
        if not ranks().leads:
            return
        if section.likelihood and model.k is None:
            found += yield from _likelihood(of)
        yield from _write(of, work / "out", found, shown)
        publish(work / "out", layout.scores(stage.name))
        yield Table("scores", [dict(zip(Row._fields[:9], one.row[:9], strict=True)) for one in found])


def _in_turn(of: Scoring, samplings: Sequence[Sampling]) -> Iterator[int | Sampling]:
    """Scores what is not there yet. Yields the evaluations done so far, and each way to sample once it is scored.

    Of several processes each scores its part, and the first waits for the others.
    """
    parts = [(how, repeat) for how in samplings for repeat in range(of.params.evaluate.repeats)]
    who, waiting = shared_out([of.cost(how) for how, _ in parts]), deque(samplings)
    yield (done := of.done(parts))
    for (how, repeat), rank in zip(parts, who, strict=True):
        if rank == ranks().rank and not of.is_there(how, repeat):
            before = of.done(parts)
            for share in _made(of, how, repeat):
                yield (done := before + round(of.cost(how) * share))
        while ranks().leads and waiting and of.is_scored(waiting[0]):
            yield waiting.popleft()
    while ranks().leads and waiting:
        if of.done(parts) != done:
            yield (done := of.done(parts))
        if of.is_scored(waiting[0]):
            yield waiting.popleft()
        else:
            time.sleep(WAIT_SECONDS)


def _made(of: Scoring, how: Sampling, repeat: int) -> Iterator[float]:
    """Scores a repeat; yields the share that is done."""
    params, model = of.params, of.model
    look = Look(params, how, of.decode) if how == of.best and repeat == 0 else None
    bends = look is not None and model.k is None
    batches = sampled(model.field(params.precision), params, how, repeat, of.noise, bends=bends)
    for samples in _score(of, batches, look, of.kept(how, repeat)):
        yield samples / params.evaluate.samples


def _score(of: Scoring, batches: Iterator[Batch], look: Look | None, path: Path) -> Iterator[int]:
    """Scores one repeat into the file `path`, tensors beside it; yields the samples done so far."""
    params = of.params
    scorer = scorer_of(of.judge, params, params.evaluate.samples)
    done, evaluations = 0, 0
    shown: list[Tensor] = []
    finite = torch.ones((), dtype=torch.bool, device=of.model.device)
    for batch in batches:
        x1 = batch.x1
        finite &= torch.isfinite(x1).all()  # read after the loop, so that nothing here waits for the device
        seen = of.decode(x1)
        scorer.add(seen)
        missing = shown_of(params) - sum(map(len, shown))
        if missing > 0:
            shown.append(seen[:missing].cpu())
        if look is not None:
            look.add(batch)
        done += len(x1)
        evaluations += batch.nfe * len(x1)
        yield done
    if not finite:
        raise FloatingPointError(f"{of.name} made samples that are not finite: it diverged")
    scores, tensors = scorer.scores(), {"shown": torch.cat(shown)}
    if look is not None:
        further, drawn = _looked(of, look)
        scores, tensors = scores + further, tensors | drawn
    keep_tensors(path.with_suffix(".safetensors"), tensors)
    keep_scores(path, scores, round(evaluations / done))


def _looked(of: Scoring, look: Look) -> tuple[list[Score], dict[str, Tensor]]:
    """What the finest Euler samples say besides their distance: scores, and tensors for pictures."""
    params, aside = of.params, eager(of.model)
    scores, tensors = look.scores(), dict(look.tensors)
    if look.bent:
        tensors["bends"] = torch.tensor(look.bends(), dtype=torch.float64)
        scores += rebuilt(aside, params, look, of.data)
    if not isinstance(of.judge, Tensor):
        copied, found = looked_up(look, of.judge.extractor, of.judge.reference, of.data)
        scores += copied
        tensors |= found | {"strips": strips(aside, look, of.labels)}
    return scores, tensors


def _rows(of: Scoring, how: Sampling) -> list[Scored]:
    """The rows of one way to sample, of all repeats."""
    found = [kept_scores(of.kept(how, repeat)) for repeat in range(of.params.evaluate.repeats)]
    repeats, nfe = [scores for scores, _ in found], round(sum(nfe for _, nfe in found) / len(found))
    # The probes look at the first repeat only, so their scores become rows of their own.
    common = min(map(len, repeats))
    return of.rows([scores[:common] for scores in repeats], how, nfe) + of.rows([repeats[0][common:]], how, nfe)


def _shown(of: Scoring, how: Sampling) -> Generator[Event, None, dict[str, Tensor]]:
    """The samples and pictures that the report shows of one way to sample."""
    tensors = kept_tensors(of.kept(how, 0).with_suffix(".safetensors"))
    samples = tensors.pop("shown")
    shown: dict[str, Tensor] = {}
    if how.solver == "euler" and how.grid == of.best.grid:
        shown[f"euler.{how.nfe:04d}"] = samples
        picture = of.work / f"samples-{how.nfe:04d}.png"
        write_file(picture, quick_picture(samples))
        yield samples_at(how.nfe, picture)
    if how == of.best:
        shown |= {key: value for key, value in tensors.items() if key != "bends"}
    return shown


def _likelihood(of: Scoring) -> Generator[Event, None, list[Scored]]:
    """The likelihood of real data under a flow, as a row."""
    section = of.params.evaluate.likelihood
    assert section is not None
    path, how = of.work / "likelihood.json", Sampling(section.solver, of.best.grid, section.nfe)
    if not path.exists():
        for event in likelihood(eager(of.model), of.params, of.name, how, of.data):
            if isinstance(event, Score):
                keep_scores(path, [event], section.nfe)
            else:
                yield event
    rows = of.rows([kept_scores(path)[0]], how, section.nfe)
    yield scored(rows[0].row.metric, rows[0].row.value, nfe=rows[0].row.nfe, solver=rows[0].row.solver)
    return rows


def _write(of: Scoring, out: Path, found: list[Scored], shown: dict[str, Tensor]) -> Events:
    """The folder of scores."""
    write_scores(out, found)
    if of.model.k is None:
        lines = kept_tensors(of.kept(of.best, 0).with_suffix(".safetensors"))["bends"].tolist()
        write_table(out / "bends.csv", Bends._fields, lines)
        for t, _, value, _ in lines:
            yield Metrics(round(1000 * t), {"bends/bend_at_1000t": value})
    write_json(out / "about.json", {"flops": flops(of.model), "sha256": of.model.digest})
    write_tensors(out / "samples.safetensors", shown)
