"""The judge, which samples are compared with: an extractor and the data's features, or the points held out."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flows import layout
from flows.params.schema import Params
from fmcore.disk.dataset import encoding_from
from fmcore.disk.files import read_json, read_tensors
from fmcore.disk.sums import check, is_there
from fmcore.flow.pixels import quantise
from fmcore.models.autoencoder import FOLDER, decoder_of
from fmcore.score.extractors import Extractor, load_extractor
from fmcore.score.reference import HELD_OUT, Reference, load_reference
from fmcore.score.scoring import ImageScorer, PointScorer, Scorer


class ImageJudge(NamedTuple):
    """What images are compared by: an extractor, the data's features, and those of images held out, if any are."""

    extractor: Extractor
    reference: Reference
    held_out: Reference | None = None


Judge = ImageJudge | Tensor
Decoding = Callable[[Tensor], Tensor]


def judge_of(params: Params, device: torch.device) -> Judge:
    """An extractor and the data's features, or the points held out, as the features stage wrote them."""
    file, section = layout.FEATURES / "reference.safetensors", params.features
    if params.is_points:
        check(layout.FEATURES, file.name)
        return read_tensors(file)["x1"]
    function = section.extractor if ":" in section.extractor else None
    extractor = load_extractor(layout.FEATURES, device, section.weights, function)
    unseen = layout.FEATURES / HELD_OUT
    held_out = load_reference(unseen, extractor.dims) if is_there(layout.FEATURES, HELD_OUT) else None
    return ImageJudge(extractor, load_reference(file, extractor.dims), held_out)


def scorer_of(judge: Judge, params: Params, count: int) -> Scorer:
    """The scorer of `count` samples."""
    metrics = params.evaluate.metrics
    if isinstance(judge, Tensor):
        return PointScorer(judge, metrics, params.seed)
    return ImageScorer(count, judge.extractor, judge.reference, metrics, params.seed, judge.held_out)


def decoding_of(params: Params, device: torch.device) -> Decoding:
    """What makes of samples what is compared and shown: 8-bit images, of latents decoded ones, or the numbers.

    Raises:
        ArtifactError: if the data are latents, and their autoencoder is not beside them.
    """
    if params.is_points:
        return lambda x: x
    check(layout.DATASET, "manifest.json")
    encoding = encoding_from(read_json(layout.DATASET / "manifest.json").get("encoding"))
    if encoding is None:
        return quantise
    decoder = decoder_of(encoding, [layout.DATASET / FOLDER], device)  # of weights with the encoding's digest
    check(layout.DATASET, f"{FOLDER}/config.json")
    return lambda x: quantise(decoder(x, params.precision))
