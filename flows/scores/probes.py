"""Probes: what is measured of a model besides its distances, on the finest of its Euler runs.

They say how its paths bend over time, whether real data still lie on them, and how close its samples are to the
training data. They also make pictures: paths from noise, the nearest training images, samples between two noises.
"""

from collections.abc import Iterator
from math import pi, prod
from typing import NamedTuple

import torch
from torch import Tensor

from flows.events import Progress
from flows.params.schema import Params
from flows.scores.judging import Decoding
from flows.scores.sweep import Batch
from fmcore.disk.dataset import Dataset
from fmcore.flow import speed
from fmcore.flow.pixels import floats, quantise
from fmcore.flow.rng import generator
from fmcore.models.folder import Trained
from fmcore.ode.likelihood import bits_per_dim, log_likelihood, uniform_dequantise
from fmcore.ode.reflow import draw, reconstruction_error
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import SOLVERS, integrate
from fmcore.score.estimates import mean_estimate
from fmcore.score.extractors import Extractor
from fmcore.score.fidelity import memorisation, nearest
from fmcore.score.reference import Reference
from fmcore.score.scoring import Score
from fmcore.score.straightness import bends, transport_cost

SHOWN_IMAGES, SHOWN_POINTS, TRACED_POINTS = 16, 2000, 200
FRAMES = 17  # knots of an animation, at most
STRIPS, STRIP_CELLS = 4, 8
REBUILT = 500  # samples for the reconstruction error, real and generated
LOOKED_UP = 1000  # samples whose nearest training images are looked for
LIKELIHOOD_BATCH = 256  # at most: the divergence keeps the graph of the whole network in memory


def shown_of(params: Params) -> int:
    """How many samples a picture shows."""
    return SHOWN_POINTS if len(params.data.shape) == 1 else SHOWN_IMAGES


class Bends(NamedTuple):
    """The mean bend of the paths on the interval that begins at t and is `width` long, with its standard error."""

    t: float
    width: float
    value: float
    std: float


class Look:
    """Gathers, batch by batch, what the probes need of the paths and samples."""

    def __init__(self, params: Params, how: Sampling, decode: Decoding) -> None:
        self.params, self.how, self.decode = params, how, decode
        self.tensors: dict[str, Tensor] = {}
        self.first: list[Batch] = []  # the first samples, on the CPU, for `looked_up` and `rebuilt`
        self.bent: list[Tensor] = []
        self.cost: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Takes a batch; those of a flow come with the points of their paths."""
        if batch.points:
            knots = self.how.knots()
            self.bent.append(bends(batch.points, knots))  # left on the device: nothing waits for it here
            self.cost.append(transport_cost(batch.x0, batch.x1))
            if "frames" not in self.tensors:
                chosen = torch.linspace(0, len(knots) - 1, min(FRAMES, len(knots))).round().long().tolist()
                shown = shown_of(self.params)
                frames = torch.stack([batch.points[i][:shown] for i in chosen])
                seen = self.decode(frames.flatten(0, 1)).cpu()
                self.tensors["frames"] = seen.view(*frames.shape[:2], *seen.shape[1:])
                self.tensors["frame_times"] = knots[chosen]
                if len(self.params.data.shape) == 1 and self.params.data.shape[0] > 1:
                    self.tensors["paths"] = torch.stack([x[:TRACED_POINTS, :2] for x in batch.points]).cpu()
        missing = LOOKED_UP - sum(len(part.x1) for part in self.first)
        if missing > 0:
            label = None if batch.label is None else batch.label[:missing].cpu()
            self.first.append(Batch(batch.x0[:missing].cpu(), batch.x1[:missing].cpu(), label, batch.nfe, []))

    def scores(self) -> list[Score]:
        """Straightness and transport cost; none for a k-step student, which has no field between its times."""
        if not self.bent:
            return []
        bent = torch.cat(self.bent, 1).cpu()
        named = {
            "straightness": self.how.knots().diff().to(bent) @ bent,
            "transport_cost": torch.cat(self.cost).cpu(),
        }
        return [Score(name, mean_estimate(found), 0, "", "") for name, found in named.items()]

    def bends(self) -> list[Bends]:
        """How the paths bend over time."""
        if not self.bent:
            return []
        knots, bent = self.how.knots(), torch.cat(self.bent, 1).cpu()
        means = [mean_estimate(of) for of in bent]
        starts, widths = knots[:-1].tolist(), knots.diff().tolist()
        return [Bends(t, w, m.value, m.std) for t, w, m in zip(starts, widths, means, strict=True)]


def rebuilt(model: Trained, params: Params, look: Look, data: Dataset) -> list[Score]:
    """Reconstruction errors of real and of generated samples."""
    order = torch.randperm(len(data.x1), generator=generator(params.seed, "reconstruction/rows"))[:REBUILT]
    real = data.x1[order]
    real_label = None if model.num_classes is None or data.label is None else data.label[order]
    labels = [part.label for part in look.first if part.label is not None]
    made = torch.cat([part.x1 for part in look.first])[:REBUILT]
    made_label = torch.cat(labels)[:REBUILT] if labels else None
    field, grid = model.field(params.precision), look.how.knots()
    found = []
    for name, x1, label in (("real", real, real_label), ("generated", made, made_label)):
        errors = []
        for first in range(0, len(x1), params.evaluate.batch):
            rows = slice(first, first + params.evaluate.batch)
            x = floats(x1[rows]).to(model.device)
            part = None if label is None else label[rows].to(model.device)
            errors.append(reconstruction_error(field, x, grid, SOLVERS["euler"], part).cpu())
        found.append(Score(f"reconstruction_{name}", mean_estimate(torch.cat(errors)), 0, "", ""))
    return found


def looked_up(
    look: Look, extractor: Extractor, reference: Reference, data: Dataset
) -> tuple[list[Score], dict[str, Tensor]]:
    """How close samples are to the training images, and the images nearest to the samples shown.

    Nothing unless the features of all training images are kept: a sample may copy one of the others.
    """
    if not reference.complete:
        return [], {}
    made = torch.cat([look.decode(part.x1).cpu() for part in look.first])
    features = torch.cat([extractor(part).cpu() for part in torch.split(made, 500)])
    distance, index = nearest(features[:SHOWN_IMAGES], reference.features)
    images = data.reference[index]
    tensors = {"nearest": quantise(images) if images.is_floating_point() else images, "nearest_distance": distance}
    try:
        found = memorisation(features, reference.features)
    except ValueError:  # undefined for data that are mostly duplicates
        return [], tensors
    rows = len(reference.features)
    return [Score("memorisation", found, rows, extractor.name, extractor.digest)], tensors


def strips(model: Trained, look: Look, labels: Tensor | None) -> Tensor:
    """Samples from noises between two, one class a strip: (STRIPS, STRIP_CELLS, C, H, W).

    The noises are mixed as cos(a) x_0 + sin(a) x_0', which is standard normal noise again.
    """
    params, how = look.params, look.how
    ends, label = draw(0, 2 * STRIPS, shape=model.shape, seed=params.seed, purpose="strips", labels=labels)
    a = torch.linspace(0, pi / 2, STRIP_CELLS).view(1, -1, *(1 for _ in model.shape))
    x0 = a.cos() * ends[:STRIPS, None] + a.sin() * ends[STRIPS:, None]
    of_strip = None if label is None else label[:STRIPS].repeat_interleave(STRIP_CELLS).to(model.device)
    x = x0.flatten(0, 1).to(model.device)
    x1 = integrate(model.field(params.precision), x, how.knots(), SOLVERS["euler"], of_strip)
    seen = look.decode(x1).cpu()
    return seen.view(*x0.shape[:2], *seen.shape[1:])


def flops(model: Trained) -> int:
    """Floating-point operations of one network evaluation of one sample: two for each multiply-add."""
    return int(speed.flops(model.network, model.shape, model.num_classes))


def likelihood(
    model: Trained, params: Params, name: str, how: Sampling, data: Dataset
) -> Iterator[Progress | Score]:
    """Yields progress, then minus the mean log-likelihood of real samples: bits per dimension, nats for points."""
    section = params.evaluate.likelihood
    assert section is not None
    field = model.field("fp32")  # under autocast the Jacobian would have bfloat16's three digits
    knots = how.knots()
    # Drawn at random, since files may be sorted by class.
    chosen = torch.randperm(len(data.reference), generator=generator(params.seed, "likelihood/rows"))
    chosen = chosen[: section.samples]
    x1 = data.reference[chosen]
    labels = None if model.num_classes is None or data.label is None else data.label[chosen]
    found: list[Tensor] = []
    unit = "points" if params.is_points else "images"
    batch = min(params.evaluate.batch, LIKELIHOOD_BATCH)
    yield Progress("likelihood", 0, len(x1), unit, of=name)
    for first in range(0, len(x1), batch):
        rows = slice(first, first + batch)
        x = floats(x1[rows])
        if data.bin_width is not None:
            x = uniform_dequantise(x, data.bin_width, seed=params.seed, start=first)
        label = None if labels is None else labels[rows].to(model.device)
        log_p = log_likelihood(
            field,
            x.to(model.device),
            knots,
            how.method,
            label=label,
            probes=section.probes,
            seed=params.seed,
            start=first,
        ).cpu()
        if data.units is not None:
            log_p = log_p - data.units.log_volume(data.shape)
        found.append(-log_p if data.bin_width is None else bits_per_dim(log_p, prod(model.shape), data.bin_width))
        yield Progress("likelihood", min(first + batch, len(x1)), len(x1), unit, of=name)
    metric = "nats" if data.bin_width is None else "bits_per_dim"
    yield Score(metric, mean_estimate(torch.cat(found)), 0, "", "")
