"""What the types of params.yaml cannot say: rules that span its keys.

Each broken rule is one line that names the keys, what was expected and what came.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict

import torch
from pydantic import ValidationError

from flows.params.bounds import LEAST_POINTS, out_of_bounds
from flows.params.graph import names
from flows.params.messages import lines_of
from flows.params.schema import Couple, Params
from flows.params.student_rules import left_rules, network_rules, student_rules
from fmcore.flow.couplings import COUPLINGS
from fmcore.flow.losses import WEIGHTINGS
from fmcore.flow.paths import Linear
from fmcore.flow.perceptual import Perceptual
from fmcore.flow.times import TIMES, KGrid
from fmcore.intake.latents import Latents
from fmcore.ode.solvers import ADAPTIVE, SOLVERS, cost, steps_for
from fmcore.score.efficientnet import EFFICIENTNET
from fmcore.score.estimates import GROUPS, group_sizes
from fmcore.score.extractors import EXTRACTORS, FUNCTION, dims_of
from fmcore.score.scoring import METRICS, METRICS_OF_POINTS

LEAST_SIGNAL = 1e-3  # of the data at the start of a path, for noise to say something of it
USUAL_BATCH = 2**14  # harmless even with few pairs
WITH_CLASSES = ("classifier", "inception-v3-compat")


def rules(params: Params) -> Iterator[str]:
    """One line for each broken rule."""
    raw = params.model_dump(mode="json")
    yield from out_of_bounds(raw)
    yield from names(raw)
    yield from _override_rules(params)
    yield from _base_rules(params)
    yield from _reflow_rules(params)
    if not 0 <= params.seed < 2**63:
        yield f"seed: expected a number in [0, 2^63), got {params.seed}"
    for where, times in (("base.times", params.base.times), ("reflow.times", params.reflow.times)):
        if isinstance(times, KGrid):
            flows = ", ".join(name for name, kind in TIMES.items() if kind is not KGrid)
            yield f"{where}.name: k_grid is for students; expected one of {flows}"
    yield from student_rules(params)
    yield from _evaluate_rules(params)
    yield from _data_rules(params)


def _couple_rules(params: Params, couple: Couple, at: Callable[[str], str], teacher: str | None) -> Iterator[str]:
    """Rules for the `couple` section with a round's overrides; `at` says where a key of it stands."""
    if couple.pairs < 1 or (couple.batch != "auto" and couple.batch < 1) or couple.inverted < 0:
        got = f"{couple.pairs}, {couple.batch} and {couple.inverted}"
        yield f"{at('pairs')}: expected pairs >= 1, batch >= 1 and inverted >= 0, got {got}"
    most = max(1 << (max(couple.pairs, 1) - 1).bit_length(), USUAL_BATCH)
    if couple.batch != "auto" and couple.batch > most:
        yield f"{at('batch')}: expected at most {most}, or auto, since each batch is filled up, got {couple.batch}"
    if params.is_points and couple.pairs < LEAST_POINTS:
        yield f"{at('pairs')}: expected at least {LEAST_POINTS}, which scores of points need, got {couple.pairs}"
    yield from left_rules("reflow.drop_longest", params.reflow.drop_longest, couple.pairs)
    if couple.dtype == "uint8" and (params.is_points or isinstance(params.data, Latents)):
        yield f"{at('dtype')}: expected float32 or float16 for what is no image, got uint8"
    passes = 1 if couple.guidance is None else 2
    yield from _solver_rules(couple.solver, (couple.nfe,), at("solver"), at("nfe"), passes=passes)
    method = SOLVERS.get(couple.solver)
    if method and method.stochastic:
        yield f"{at('solver')}: {couple.solver} is stochastic, and couplings need a deterministic solver"
    elif method and couple.inverted and not method.reversible:
        yield f"{at('solver')}: {couple.solver} runs from noise to data only, so {at('inverted')} must be 0"
    if teacher is None:
        return
    knows_none = params.conditional if params.base.teacher else params.base.label_dropout > 0
    if couple.guidance and (teacher != "base" or not knows_none):
        yield (
            f"{at('guidance')}: expected null for the teacher {teacher}: guidance needs a base trained with "
            "labels (conditional: true) and base.label_dropout > 0, or a diffusion model with a class for none; a "
            "round may have its own in reflow.rounds.NAME.couple"
        )
    train = params.base.train if teacher == "base" else params.train_of(teacher)
    further = [] if teacher == "base" and params.base.teacher else list(train.ema_halflife_images[1:])
    if couple.ema is not None and couple.ema not in further:
        yield (
            f"{at('ema')}: expected null or, after the first, a half-life of {teacher}'s "
            f"train.ema_halflife_images ({json.dumps(further)}), got {couple.ema}"
        )


def _override_rules(params: Params) -> Iterator[str]:
    """The sections with each round's overrides, checked as whole sections."""
    whole = params.model_dump(mode="json")
    told: list[str] = []
    whole_rounds = {"base"}  # of others it cannot be said how they train
    for name, round_ in params.reflow.rounds.items():
        over = {
            "couple": {**whole["couple"], **round_.couple},
            "reflow": {**whole["reflow"], "train": {**whole["reflow"]["train"], **round_.train}, "rounds": {}},
        }
        try:
            merged = Params.model_validate_json(json.dumps({**whole, **over}))
        except ValidationError as error:
            for line in lines_of(error, {**whole, **over}):
                yield f"reflow.rounds.{name}.{line.removeprefix('reflow.')}"
            continue
        whole_rounds.add(name)

        def at(key: str, own: Collection[str] = round_.couple, name: str = name) -> str:
            return f"reflow.rounds.{name}.couple.{key}" if key in own else f"couple.{key}"

        for line in _couple_rules(
            params, merged.couple, at, round_.teacher if round_.teacher in whole_rounds else None
        ):
            if line not in told:
                told.append(line)
                yield line
        if params.reflow.mix.inverted and not merged.couple.inverted:
            yield f"reflow.mix.inverted: {params.reflow.mix.inverted} needs {at('inverted')} > 0, got 0"


def _base_rules(params: Params) -> Iterator[str]:
    base = params.base
    if not 0 <= base.label_dropout < 1:
        yield f"base.label_dropout: expected a number in [0, 1), got {base.label_dropout}"
    if base.label_dropout and not params.conditional:
        yield f"base.label_dropout: {base.label_dropout} needs conditional: true, got false"
    if base.teacher is not None and base.coupling != "independent":
        yield f"base.coupling: {base.coupling} needs a base to train, and base.teacher is one already made"
    if base.teacher is not None and base.label_dropout:
        yield "base.label_dropout: expected 0 with base.teacher, which is not trained"
    if base.coupling not in COUPLINGS:
        yield f"base.coupling: expected one of {', '.join(COUPLINGS)}, got {json.dumps(base.coupling)}"
    if base.weighting not in WEIGHTINGS:
        yield f"base.weighting: expected one of {', '.join(WEIGHTINGS)}, got {json.dumps(base.weighting)}"
    if base.predicts == "noise" and float(base.path(torch.tensor(base.path.span[0])).a) < LEAST_SIGNAL:
        yield (
            f"base.predicts: noise says nothing of the data where x_t is noise alone, as on base.path "
            f"{base.path.name} at t = 0: expected data or v there, or the path vp"
        )
    if base.predicts != "velocity":
        for at, there in (("base.teacher", base.teacher), ("base.path", base.path.normalised or None)):
            if there is not None:
                got = base.path.name if at == "base.path" else there
                yield f"base.predicts: expected velocity with {at} {got}, got {base.predicts}"
        if isinstance(base.distance, Perceptual):
            yield f"base.distance.name: lpips needs base.predicts velocity, got {base.predicts}"
    if isinstance(base.distance, Perceptual) and base.path != Linear():
        yield f"base.distance.name: lpips needs base.path {{name: linear, sigma_min: 0}}, got {base.path.name}"


def _reflow_rules(params: Params) -> Iterator[str]:
    reflow, mix = params.reflow, params.reflow.mix
    if reflow.weighting not in WEIGHTINGS:
        yield f"reflow.weighting: expected one of {', '.join(WEIGHTINGS)}, got {json.dumps(reflow.weighting)}"
    if not 0 <= reflow.drop_longest < 1:
        yield f"reflow.drop_longest: expected a number in [0, 1), got {reflow.drop_longest}"
    if not (0 <= mix.inverted <= 1 and 0 < mix.until <= 1 and 0 <= mix.slerp <= 1 and mix.refresh_images >= 0):
        yield (
            "reflow.mix: expected inverted and slerp in [0, 1], until in (0, 1] and refresh_images >= 0, got "
            f"{json.dumps(asdict(mix))}"
        )
    if not mix.inverted and (mix.slerp or mix.refresh_images):
        yield "reflow.mix.inverted: slerp and refresh_images act on inverted data, expected a share > 0, got 0"
    if reflow.labels == "drop" and not params.conditional:
        yield "reflow.labels: drop needs conditional: true, got false"
    if reflow.network is not None:
        yield from network_rules(params, reflow.network, "reflow.network")


def _solver_rules(
    name: str, nfes: tuple[int, ...], solver_key: str, nfe_key: str, *, passes: int = 1
) -> Iterator[str]:
    if name not in SOLVERS:
        hint = "; adaptive steps are evaluate.dopri5" if name == ADAPTIVE else ""
        scores = solver_key.startswith("evaluate.solvers")
        offered = [other for other, method in SOLVERS.items() if scores or not method.stochastic]
        yield f"{solver_key}: expected one of {', '.join(offered)}, got {json.dumps(name)}{hint}"
        return
    for nfe in nfes:
        try:
            steps_for(SOLVERS[name], nfe, passes=passes)
        except ValueError:
            guided = " under guidance" if passes > 1 else ""
            costs = ", ".join(str(cost(SOLVERS[name], steps) * passes) for steps in (1, 2, 3))
            yield f"{nfe_key}: expected one of {costs}, ... for {name}{guided}, got {nfe}"


def _evaluate_rules(params: Params) -> Iterator[str]:
    evaluate = params.evaluate
    for name, nfes in evaluate.solvers.items():
        yield from _solver_rules(name, nfes, f"evaluate.solvers.{name}", f"evaluate.solvers.{name}")
    if not evaluate.solvers.get("euler"):
        yield "evaluate.solvers.euler: expected at least one NFE; straightness is measured on its finest grid"
    if evaluate.samples < 100 or evaluate.batch < 1:
        yield f"evaluate: expected samples >= 100 and batch >= 1, got {evaluate.samples} and {evaluate.batch}"
    for name, nfes in evaluate.solvers.items():
        if len(set(nfes)) < len(nfes):
            yield f"evaluate.solvers.{name}: expected each NFE once, got {list(nfes)}"
    if evaluate.repeats < 1:
        yield f"evaluate.repeats: expected a number >= 1, got {evaluate.repeats}"
    names = [grid.name for grid in evaluate.grids]
    if not names or len(set(names)) < len(names):
        yield f"evaluate.grids: expected at least one grid and each once, got {json.dumps(names)}"
    dims = None if params.is_points else dims_of(params.features.extractor, params.sample_shape)
    if dims is not None:
        least = _least(dims)
        if evaluate.samples < least:
            yield f"evaluate.samples: expected at least {least} for {dims} features, got {evaluate.samples}"
        for name in params.reflow.rounds:
            own = params.reflow.rounds[name].couple.get("pairs")
            pairs = params.couple.pairs if own is None else own
            if isinstance(pairs, int) and pairs < least:  # what is no number is told elsewhere
                key = "couple.pairs" if own is None else f"reflow.rounds.{name}.couple.pairs"
                yield f"{key}: expected at least {least}, to be scored on {dims} features, got {pairs}"
    offered = METRICS_OF_POINTS if params.is_points else METRICS
    for name in evaluate.metrics:
        if name not in offered:
            yield f"evaluate.metrics: expected any of {', '.join(offered)}, got {json.dumps(name)}"
    if "inception_score" in evaluate.metrics and params.features.extractor not in WITH_CLASSES:
        yield (
            f"evaluate.metrics: inception_score needs features.extractor {' or '.join(WITH_CLASSES)}, "
            f"got {params.features.extractor}"
        )
    if likelihood := evaluate.likelihood:
        at = "evaluate.likelihood"
        yield from _solver_rules(likelihood.solver, (likelihood.nfe,), f"{at}.solver", f"{at}.nfe")
        method = SOLVERS.get(likelihood.solver)
        if method and (method.stochastic or not method.reversible):
            yield f"{at}.solver: {likelihood.solver} has no likelihood; expected a deterministic solver, e.g. rk4"
        if likelihood.samples < 2 or likelihood.probes < 0:
            got = f"{likelihood.samples} and {likelihood.probes}"
            yield f"{at}: expected samples >= 2 and probes >= 0, got {got}"


def _least(dims: int) -> int:
    """The fewest samples whose covariance of `dims` features is regular without any one jackknife group."""
    return next(n for n in range(dims, 2 * dims + 2 * GROUPS) if n - max(group_sizes(n)) > dims)


def _image_rules(params: Params) -> Iterator[str]:
    """What is for images alone, of data that are none or are trained on as none."""
    name = params.data.name
    if params.flip:
        yield f"flip: {name} are no images, expected false"
    if params.base.teacher is not None:
        yield f"base.teacher: expected null for {name}, no images: teachers make images"
    for at, section in (("base", params.base), ("reflow", params.reflow)):
        if isinstance(section.distance, Perceptual):
            yield f"{at}.distance.name: lpips compares images, and data.name {name} are none"


def _data_rules(params: Params) -> Iterator[str]:
    kind = params.features.extractor
    if kind not in EXTRACTORS and not FUNCTION.fullmatch(kind):
        offered = ", ".join(EXTRACTORS)
        yield f"features.extractor: expected one of {offered}, or MODULE:FUNCTION, got {json.dumps(kind)}"
        return
    if params.base.teacher is None:
        yield from network_rules(params, params.network, "network")
    if isinstance(params.data, Latents):
        yield from _image_rules(params)
        if params.evaluate.likelihood is not None:
            yield "evaluate.likelihood: expected null, since that of latents is none of images"
    if params.is_points:
        if kind != "none":
            yield f'features.extractor: expected "none" for {params.data.name}, no images, got {json.dumps(kind)}'
        if params.conditional and not getattr(params.data, "labels", None):
            yield f"conditional: {params.data.name} has no classes, expected false"
        yield from _image_rules(params)
    elif kind == "none":
        yield "features.extractor: none is for points; images need another, e.g. classifier or views"
    elif kind == "rotation" and params.sample_shape[1] != params.sample_shape[2]:
        sides = f"{params.sample_shape[1]}x{params.sample_shape[2]}"
        yield f"features.extractor: rotation turns images and needs square ones, got {sides}; expected views"
    elif kind == EFFICIENTNET and params.sample_shape[0] not in (1, 3):
        yield f"features.extractor: {kind} takes images of 1 or 3 channels, got {params.sample_shape[0]}"
    if kind != "inception-v3-compat" and (params.features.weights is not None or params.features.download):
        yield f"features: expected weights null and download false for {kind}, only inception-v3-compat has a file"
