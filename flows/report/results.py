"""What the stages wrote, read into tables, and the numbers that follow from it.

Nothing here draws. Tables are tidy: a row is one number with its error and all that identifies it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from flows import layout
from flows.params.schema import Params
from fmcore.disk.dataset import Dataset, load_dataset
from fmcore.disk.files import ArtifactError, read_json, read_tensors
from fmcore.disk.sums import check
from fmcore.flow.errors import one_line
from fmcore.score.estimates import Estimate
from fmcore.score.points import sliced_wasserstein
from fmcore.score.scoring import UNSEEN
from fmcore.verdict import Choice, Sampled, Verdict, choices, verdict

HEADLINE_OF_POINTS = "sliced_wasserstein"
# Metrics with one number a model. `flows.events.ONE_A_MODEL` names them too, but no result may depend on events.
OF_FLOWS = (
    *("straightness", "transport_cost", "reconstruction_real", "reconstruction_generated"),
    *("bits_per_dim", "nats", "memorisation"),
)
PARETO_NFE = (1, 2, 4)  # and the largest


class Level(NamedTuple):
    """A distance that others are compared with, with its standard error.

    Main arguments:
        samples: it was measured on.
        moved: what was added to its value because the models were scored on another number of samples.
    """

    value: float
    std: float
    samples: int
    moved: float = 0.0


class PairsScore(NamedTuple):
    """The score of the pairs of the round `of`, and the students that learnt them."""

    of: str
    level: Level
    learners: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """Everything the report shows.

    Main arguments:
        scores: all rows of scores.csv, of models and of couplings (`couplings-ROUND`).
        left_out: model, solver, grid, nfe, metric, group, value: the jackknife's values behind errors.
        bends: model, t, width, value, std: how far velocities are from the chord, over time.
        histograms: round, what, left, right, count.
        shown: tensors of samples.safetensors by model.
        quality: numbers by round.
        flops: of one network evaluation of one sample, by model; `digests` are those of their weights, "" where
            scores of an older version do not say.
        headline: the distance that charts and tables show first.
        data: what the models learnt, and what they are compared with; `read` is what its manifest says of it.
        floor: the score of fresh data, None if it is not known.
        pairs_scores: those of the pairs that students learnt.
    """

    params: Params
    scores: pd.DataFrame
    left_out: pd.DataFrame
    training: pd.DataFrame
    bends: pd.DataFrame
    histograms: pd.DataFrame
    shown: Mapping[str, Mapping[str, Tensor]]
    quality: Mapping[str, Mapping[str, float]]
    flops: Mapping[str, int]
    digests: Mapping[str, str]
    features: Mapping[str, Any]
    accuracy: float | None
    headline: str
    data: Dataset
    read: Mapping[str, Any]
    floor: Level | None
    pairs_scores: tuple[PairsScore, ...]

    @property
    def models(self) -> list[str]:
        """All models, in order."""
        return self.params.models

    @property
    def rounds(self) -> list[str]:
        """All reflow rounds, in order."""
        return list(self.params.reflow.rounds)

    def is_matched(self, model: str) -> bool:
        """Whether it is a student that was matched to data."""
        students = self.params.distill.students
        return model in students and getattr(self.params.distill_of(model).ending, "match", None) is not None

    @property
    def of_models(self) -> pd.DataFrame:
        """The scores without those of couplings."""
        return self.scores[self.scores.model.isin(self.models)]


def read_results(params: Params) -> Results:
    """Reads what the stages wrote.

    Raises:
        ArtifactError: names a file that is missing or damaged.
    """
    models, rounds = params.models, list(params.reflow.rounds)
    scored = [(name, layout.scores(name)) for name in [*models, *(layout.coupled(name) for name in rounds)]]
    for _, folder in scored:
        check(folder)
    check(layout.FEATURES, "floor.json", "accuracy.json", "manifest.json")
    scores = pd.concat([_read(folder / "scores.csv") for _, folder in scored], ignore_index=True)
    headline = headline_of(scores)
    distances = scores[scores.metric == headline]
    bends = [(name, layout.scores(name) / "bends.csv") for name in models]
    histograms = [(name, layout.scores(layout.coupled(name)) / "histograms.csv") for name in rounds]
    floor = read_json(layout.FEATURES / "floor.json")
    abouts = {name: read_json(layout.scores(name) / "about.json") for name in models}
    data, features = load_dataset(layout.DATASET), read_json(layout.FEATURES / "manifest.json")
    return Results(
        params=params,
        scores=scores,
        left_out=_joined("model", [(name, folder / "jackknife.csv") for name, folder in scored]),
        training=pd.concat([_read(layout.curve(name)) for name in models], ignore_index=True),
        bends=_joined("model", [(name, path) for name, path in bends if path.exists()]),
        histograms=_joined("round", histograms),
        shown={name: read_tensors(layout.scores(name) / "samples.safetensors") for name in models},
        quality={name: read_json(layout.scores(layout.coupled(name)) / "quality.json") for name in rounds},
        flops={name: about["flops"] for name, about in abouts.items()},
        digests={name: about.get("sha256", "") for name, about in abouts.items()},
        features=features,
        accuracy=read_json(layout.FEATURES / "accuracy.json").get("held_out_accuracy"),
        headline=headline,
        data=data,
        read=read_json(layout.DATASET / "manifest.json") | {"decoded": features.get("decoded")},
        floor=_floor_of_points(data, params.evaluate.samples)
        if params.is_points
        else _floor_of_images(floor, distances),
        pairs_scores=tuple(_pairs_scores(params, distances, floor)),
    )


def _read(path: Path) -> pd.DataFrame:
    """A table, its numbers as they were written; texts that are not there are empty."""
    text = {"grid": str, "extractor": str, "extractor_sha256": str}
    try:
        return pd.read_csv(path, dtype=text).fillna(dict.fromkeys(text, ""))
    except (OSError, ValueError) as error:  # pandas' own are of the latter
        raise ArtifactError(f"{path}: expected a table: {one_line(error)}") from None


def _joined(key: str, files: list[tuple[str, Path]]) -> pd.DataFrame:
    parts = [_read(path) for _, path in files]
    for part, (name, _) in zip(parts, files, strict=True):
        part.insert(0, key, name)
    return pd.concat(parts, ignore_index=True)


def headline_of(scores: pd.DataFrame) -> str:
    """The distance that charts and tables show first: a Frechet distance, or sliced Wasserstein for points."""
    names = scores.metric.unique()
    others = ("_inf", UNSEEN)
    found = (name for name in names if name.startswith(("fid_", "fd_")) and not name.endswith(others))
    return next(found, HEADLINE_OF_POINTS)


def _floor_of_images(floor: Mapping[str, float], rows: pd.DataFrame) -> Level | None:
    """The mean score of as many fresh images as were scored."""
    if not floor:
        return None
    samples = int(rows.n_samples.iloc[0])
    size = 1 / samples + 1 / int(rows.n_reference.iloc[0])
    return Level(floor["coefficient"] * size, floor["std"] * size, samples)


def _floor_of_points(data: Dataset, count: int) -> Level:
    """The score of as many samples of the data as were scored, or of half of them if none is held out."""
    if data.reference is data.x1:
        found = sliced_wasserstein(data.x1[::2][:count].flatten(1), data.x1[1::2].flatten(1))
    else:
        found = sliced_wasserstein(data.x1[:count].flatten(1), data.reference.flatten(1))
    return Level(found.value, found.std, found.samples)


def _pairs_scores(params: Params, distances: pd.DataFrame, floor: Mapping[str, float]) -> Iterator[PairsScore]:
    students = params.distill.students
    for of in dict.fromkeys(student.couplings for student in students.values()):
        row = distances[distances.model == layout.coupled(of)].iloc[0]
        level = _level_of_pairs(row, int(distances.n_samples.iloc[0]), floor)
        yield PairsScore(of, level, tuple(name for name, student in students.items() if student.couplings == of))


def _level_of_pairs(pairs: pd.Series, samples: int, floor: Mapping[str, float]) -> Level:
    """The score of the pairs, moved to what as many of them as the models' samples would score.

    n pairs add a bias of about c / n. The score stays as measured if c is not known, or if moving it would make it
    negative.
    """
    value, std, count = float(pairs.value), float(pairs["std"]), int(pairs.n_samples)
    gap = 1 / samples - 1 / count
    moved = floor.get("coefficient", 0.0) * gap
    if value + moved <= 0:
        return Level(value, std, count)
    return Level(value + moved, hypot(std, floor.get("std", 0.0) * gap), count, moved)


def curves_of(results: Results) -> pd.DataFrame:
    """The headline of every run, with the ends of its error bar."""
    table = results.of_models
    rows = table[table.metric == results.headline][["model", "solver", "grid", "nfe", "metric", "value", "std"]]
    # On a log axis a bar that reaches below 0 has no end.
    low = (rows.value - rows["std"]).clip(lower=rows.value / 10)
    return rows.assign(low=low, high=rows.value + rows["std"]).reset_index(drop=True)


def euler_of(results: Results) -> pd.DataFrame:
    """The headline of Euler runs, each model's on its first grid."""
    table = results.of_models
    rows = table[(table.metric == results.headline) & (table.solver == "euler")]
    return rows[rows.grid == rows.groupby("model", sort=False).grid.transform("first")]


def headlines(results: Results) -> dict[str, Any]:
    """What `dvc metrics show` and `dvc exp show` print, few enough to be columns of a table.

    The headline of each model at its fewest and most Euler steps, and metrics with one number a flow.
    """
    table = results.of_models
    by_model = {}
    for model, rows in euler_of(results).groupby("model", sort=False):
        ends = rows[rows.nfe.isin([rows.nfe.min(), rows.nfe.max()])]
        by_model[str(model)] = {f"nfe_{n:03d}": value for n, value in zip(ends.nfe, ends.value, strict=True)}
    out: dict[str, Any] = {results.headline: by_model}
    for metric in ("straightness", "bits_per_dim", "nats"):
        rows = table[table.metric == metric]
        if len(rows):
            out[metric] = dict(zip(rows.model, rows.value, strict=True))
    ceilings = {of: float(f"{level.value:.6g}") for of, level, _ in results.pairs_scores}
    out["ceiling"] = next(iter(ceilings.values())) if len(ceilings) == 1 else ceilings
    if results.floor is not None:
        out["floor"] = float(f"{results.floor.value:.6g}")
    return out


def training_passes(params: Params) -> dict[str, int]:
    """Network evaluations on images that it took to make each model; what its parents share is counted once.

    A base counts the images it trained on (none if it is a diffusion model that existed), a round also the
    evaluations of its couplings, a student those that its ending takes for each image. An evaluation in training
    costs about three in sampling, since it has a backward pass.
    """
    teacher = params.base.teacher is not None
    spent = {"base": {"base": 0 if teacher else params.base.train.images}}
    couplings: dict[str, dict[str, int]] = {}
    for name, round_ in params.reflow.rounds.items():
        section = params.couple_of(name)
        made = {f"couplings of {name}": (section.pairs + section.inverted) * section.nfe}
        couplings[name] = spent[round_.teacher] | made
        spent[name] = couplings[name] | {name: params.train_of(name).images}
    for name, student in params.distill.students.items():
        distilled = params.distill_of(name)
        own = round(distilled.train.images * distilled.ending.passes)
        spent[name] = spent[student.init] | couplings[student.couplings] | {name: own}
    return {name: sum(parts.values()) for name, parts in spent.items()}


def pareto_of(results: Results, curves: pd.DataFrame) -> pd.DataFrame:
    """The best headline of each model at each NFE, with what the model and one sample of it cost."""
    best = curves.loc[curves.groupby(["model", "nfe"], sort=False).value.idxmin()]
    passes = training_passes(results.params)
    rows = best[["model", "nfe", "value", "std"]].sort_values("nfe", kind="stable")
    rows.insert(2, "training_passes", [passes[model] for model in rows.model])
    gflops = [nfe * results.flops[model] / 1e9 for model, nfe in zip(rows.model, rows.nfe, strict=True)]
    rows.insert(3, "gflops_per_sample", [float(f"{value:.6g}") for value in gflops])
    order = {model: i for i, model in enumerate(results.models)}
    return rows.sort_values("model", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)


def ratings_of(results: Results) -> dict[str, dict[int, tuple[float, str]]]:
    """By model and budget: the least headline within so many evaluations, and how it was reached."""
    table = results.of_models
    rows = table[table.metric == results.headline]
    found: dict[str, dict[int, tuple[float, str]]] = {}
    for model, runs in rows.groupby("model", sort=False):
        for budget in PARETO_NFE:
            within = runs[runs.nfe <= budget].to_dict("records")
            if within:
                best = min(within, key=lambda run: run["value"])
                how = f"{run_name(best['solver'], best['grid'], rows)} at {best['nfe']}"
                found.setdefault(str(model), {})[budget] = float(best["value"]), how
    return found


def yardstick_of(results: Results) -> str:
    """What the headline was measured with: models are compared by it where this is the same."""
    rows = results.of_models
    row = rows[rows.metric == results.headline].iloc[0]
    what = f"{results.headline} of {row.n_samples} samples against {row.n_reference}"
    digests = [row.extractor_sha256, str(results.features.get("reference_sha256", ""))]
    return f"{what} ({', '.join(digest[:8] for digest in digests if digest)})"


def run_name(solver: str, grid: str, runs: pd.DataFrame) -> str:
    """A solver, and its grid if there are several."""
    return f"{solver}, {grid}" if grid and runs.grid[runs.grid != ""].nunique() > 1 else solver


def _estimates(results: Results, rows: pd.DataFrame) -> list[tuple[str, int, Estimate]]:
    """Model, NFE and headline of those runs, with what the errors of differences need."""
    key = ["model", "solver", "grid", "nfe"]
    mine = results.left_out[results.left_out.metric == results.headline]
    left_out = mine.groupby(key).value.agg(tuple).to_dict()
    return [
        (str(run[0]), int(run[3]), Estimate(value, std, int(samples), left_out.get(run, ())))
        for run, value, std, samples in zip(
            rows[key].itertuples(index=False, name=None), rows.value, rows["std"], rows.n_samples, strict=True
        )
    ]


def sampled_of(results: Results) -> list[Sampled]:
    """Every run: its model, how it was sampled, and its headline."""
    table = results.of_models
    rows = table[table.metric == results.headline]
    names = [run_name(solver, grid, rows) for solver, grid in zip(rows.solver, rows.grid, strict=True)]
    found = zip(_estimates(results, rows), names, strict=True)
    return [Sampled(model, how, nfe, score) for (model, nfe, score), how in found]


def choices_of(results: Results) -> tuple[Choice, ...]:
    """Which model to take at which budget, of all that was run."""
    return choices(sampled_of(results))


def verdict_of(results: Results) -> Verdict | None:
    """What the rounds did, by Euler on the first grid; None if it ran at one NFE only."""
    if len(results.params.evaluate.solvers["euler"]) < 2:
        return None
    scores: dict[str, dict[int, Estimate]] = {model: {} for model in results.models}
    for model, nfe, score in _estimates(results, euler_of(results)):
        scores[model][nfe] = score
    teachers = {name: round_.teacher for name, round_ in results.params.reflow.rounds.items()}
    return verdict(scores, teachers)
