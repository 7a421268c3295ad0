"""Stage `features`: the feature extractor and the statistics of the data's features, or the points held out."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows import layout
from flows.events import Event, Events, Metrics, Note, Progress
from flows.params.schema import Params
from flows.stages.training import run_training
from flows.workshop.entry import Stage
from flows.workshop.setup import device_of
from flows.workshop.workspace import publish, workspace
from fmcore.disk.dataset import Dataset, load_dataset
from fmcore.disk.files import read_json, write_json, write_tensors
from fmcore.disk.sums import check
from fmcore.flow.pixels import quantise
from fmcore.flow.rng import generator
from fmcore.flow.training import new_state, take_average
from fmcore.models.autoencoder import FOLDER, decoder_of
from fmcore.score.extractors import FITTED, Extractor, adopt, load_extractor, save_extractor
from fmcore.score.feature_net import FEW_DIMS, FIT_DIMS, fitting
from fmcore.score.frechet import frechet_floor
from fmcore.score.reference import HELD_OUT, LABELS, Reference, data_digest, reference_parts, save_reference
from fmcore.score.scoring import ImageScorer

BATCH = 500
DECODED = 10_000  # images at most
PREPROCESSING = "8 bits, round half up, no resizing"


def features(params: Params, stage: Stage) -> Events:
    """Fits or adopts the extractor; writes it with the reference that scores compare against."""
    data = load_dataset(layout.DATASET)
    with workspace(stage, params) as work:
        out = work / "out"
        about: dict[str, Any] = {"data": params.data.name, "split": "held out" if params.is_points else "train"}
        how = {key: value for key, value in (data.about or {}).items() if key in ("background", "levels")}
        about |= {"reading": how} if how else {}  # so that images of others are read as these were
        floor: dict[str, float] = {}
        accuracy: dict[str, float] = {}
        if params.features.extractor == "none":
            write_tensors(out / "reference.safetensors", {"x1": data.reference})
            about |= {"extractor": "none", "reference_sha256": data_digest(data.reference)}
        else:
            pixels = quantise(data.reference) if data.reference.is_floating_point() else data.reference
            if params.features.extractor in FITTED:
                accuracy = yield from _fit(params, data, pixels, work)
                extractor = load_extractor(out, device_of(params))
            else:
                extractor = _adopt(params, pixels, out)
            reference = yield from _reference(params, extractor, pixels)
            save_reference(out / "reference.safetensors", reference)
            if data.held_out is not None:
                unseen = quantise(data.held_out) if data.held_out.is_floating_point() else data.held_out
                yield from _unseen(params, extractor, unseen, out)
            floor = _floor(reference)
            if data.encoding is not None:
                decoded = yield from _decoded(params, data, extractor, reference)
                accuracy |= {f"decoded_{key}": value for key, value in decoded.items()}
                about |= {"decoded": decoded}
            about = {**read_json(out / "manifest.json"), **about}
            about |= {"reference_sha256": data_digest(pixels), "preprocessing": PREPROCESSING}
        if data.label is not None:  # so that whoever scores a model later draws classes as often as they are
            write_tensors(out / LABELS, {"label": data.label})
        write_json(out / "manifest.json", about)
        write_json(out / "accuracy.json", accuracy)
        write_json(out / "floor.json", floor)
        publish(out, layout.FEATURES)


def _fit(params: Params, data: Dataset, pixels: Tensor, work: Path) -> Generator[Event, None, dict[str, float]]:
    """Trains the extractor on the data; returns its held-out accuracy."""
    section, device = params.features, device_of(params)
    fitted = fitting(
        section.extractor,
        pixels.to(device),
        None if data.label is None else data.label.to(device),
        data.num_classes,
        batch_size=section.train.batch_size,
        seed=params.seed,
    )
    if fitted.network.dims < FIT_DIMS:
        yield Note(f"features: {len(pixels)} images are few, so they are compared by {FEW_DIMS} features")
    state = new_state(fitted.network, section.train)
    for event in run_training("features", work, state, fitted.objective, section.train, params.seed):
        yield _own(event) if isinstance(event, Metrics) else event
    take_average(state)
    held_out = save_extractor(work / "out", section.extractor, fitted, pixels.to(device))
    accuracy = {"held_out_accuracy": round(held_out, 6)}
    yield Metrics(0, {f"features/{name}": value for name, value in accuracy.items()})
    yield Note(f"feature {section.extractor}: held-out accuracy {held_out:.3f}")
    return accuracy


def _own(event: Metrics) -> Metrics:
    """A record of the training apart from those of the models."""
    return event._replace(values={f"features/{key.partition('/')[2]}": v for key, v in event.values.items()})


def _adopt(params: Params, pixels: Tensor, out: Path) -> Extractor:
    """An extractor that exists already."""
    section, batches = params.features, torch.split(pixels, BATCH)
    options = (device_of(params), section.weights, section.download)
    return adopt(section.extractor, out, tuple(pixels.shape[1:]), batches, *options)


def _reference(params: Params, extractor: Extractor, pixels: Tensor) -> Generator[Event, None, Reference]:
    """The data's features and their statistics; a ValueError unless there are more images than features."""
    if len(pixels) <= extractor.dims:
        raise ValueError(
            f"features.extractor: {params.features.extractor} makes {extractor.dims} features, for which data "
            f"{params.data.name} has too few images, {len(pixels)}; expected e.g. classifier or views"
        )
    yield Progress("reference", 0, len(pixels), of="features")
    reference: Reference | None = None
    for part in reference_parts(extractor, torch.split(pixels, BATCH), len(pixels)):
        reference = part if reference is None else reference + part
        yield Progress("reference", reference.stats.count, len(pixels), of="features")
    assert reference is not None
    return reference


def _unseen(params: Params, extractor: Extractor, pixels: Tensor, out: Path) -> Events:
    """Writes the statistics of images held out, if there are more of them than features."""
    if len(pixels) <= extractor.dims:
        yield Note(
            f"features: {len(pixels)} images held out are too few to be compared by {extractor.dims} features"
        )
        return
    save_reference(out / HELD_OUT, (yield from _reference(params, extractor, pixels)))


def _decoded(
    params: Params, data: Dataset, extractor: Extractor, reference: Reference
) -> Generator[Event, None, dict[str, float]]:
    """The distance to the data of its images decoded again, which a model of the latents can hardly beat."""
    assert data.encoding is not None
    decoder = decoder_of(data.encoding, [layout.DATASET / FOLDER], device_of(params))
    check(layout.DATASET, f"{FOLDER}/config.json")
    rows = torch.randperm(len(data.x1), generator=generator(0, "features/decoded"))[:DECODED]
    scorer = ImageScorer(len(rows), extractor, reference)
    for done, part in enumerate(torch.split(rows, BATCH)):
        yield Progress("decode", done * BATCH, len(rows), of="features")
        scorer.add(quantise(decoder(data.x1[part], "fp32")))
    yield Progress("decode", len(rows), len(rows), of="features")
    try:
        score = scorer.scores()[0]
    except ValueError as error:
        yield Note(f"features: images decoded again were not scored: {error}")
        return {}
    value, std = float(f"{score.estimate.value:.6g}"), score.estimate.std
    yield Metrics(0, {f"features/decoded_{score.metric}": value})
    yield Note(
        f"features: {len(rows)} images decoded again are at {score.metric} {value:.4g} ± {std:.2g} to the data; "
        "samples of a flow of their latents cannot be expected to be nearer"
    )
    return {score.metric: value}


def _floor(reference: Reference) -> dict[str, float]:
    """The coefficient of the data's floor (`frechet_floor`); empty if there are too few images."""
    try:
        found = frechet_floor(reference.parts)
    except ValueError:
        return {}
    return {"coefficient": float(f"{found.value:.6g}"), "std": float(f"{found.std:.3g}")}
