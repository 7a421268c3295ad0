"""Stage `features`: the feature extractor and the data's statistics under it, or the points held out."""

import torch

from flows import layout
from flows.events import Events, Metrics, Note, Progress
from flows.params import Params
from flows.setup import device_of
from flows.train import run_training
from flows.work import publish, workspace
from fmcore.feature_net import fitting
from fmcore.features import (
    FITTED,
    Reference,
    adopt,
    data_digest,
    load_extractor,
    reference_parts,
    save_extractor,
    save_reference,
)
from fmcore.metrics import frechet_floor
from fmcore.pixels import quantise
from fmcore.store import read_json, write_json, write_tensors
from fmcore.training import averaged, new_state

BATCH = 500
PREPROCESSING = "8 bits, round half up, no resizing"


def features(params: Params, name: str) -> Events:
    """Fits or adopts the extractor; writes it with the reference that scores compare against."""
    recipe = params.model_dump(mode="json", include={"seed", "device", "data", "features"})
    recipe["checked"] = read_json(layout.CHECKED)
    device, section = device_of(params), params.features
    data = params.data.load()
    accuracy: dict[str, float] = {}
    floor: dict[str, float] = {}
    with workspace("features", recipe) as work:
        out = work / "out"
        about = {"data": params.data.name, "split": "held out" if params.is_points else "train"}
        if section.extractor == "none":
            write_tensors(out / "reference.safetensors", {"x1": data.reference})
            about |= {"extractor": "none", "reference_sha256": data_digest(data.reference)}
        else:
            pixels = quantise(data.reference) if data.reference.is_floating_point() else data.reference
            shape = tuple(pixels.shape[1:])
            if section.extractor in FITTED:
                fitted = fitting(
                    section.extractor,
                    pixels.to(device),
                    None if data.label is None else data.label.to(device),
                    data.num_classes,
                    batch_size=section.train.batch_size,
                    seed=params.seed,
                )
                state = new_state(fitted.network, section.train)
                yield from run_training("features", work, state, fitted.objective, section.train, params.seed)
                averaged(state)
                held_out = save_extractor(out, section.extractor, fitted, pixels.to(device))
                accuracy = {"held_out_accuracy": round(held_out, 6)}
                yield Metrics(0, accuracy)
                yield Note(f"feature {section.extractor}: held-out accuracy {held_out:.3f}")
                extractor = load_extractor(out, device)
            else:
                batches = torch.split(pixels, BATCH)
                weights, download = section.weights, section.download
                extractor = adopt(section.extractor, out, shape, batches, device, weights, download)
            if len(pixels) <= extractor.dims:
                raise ValueError(
                    f"features.extractor: {section.extractor} makes {extractor.dims} features, for which data "
                    f"{params.data.name} has too few images, {len(pixels)}; expected e.g. classifier or rotation"
                )
            yield Progress("reference features", 0, len(pixels))
            reference: Reference | None = None
            for part in reference_parts(extractor, torch.split(pixels, BATCH), len(pixels)):
                reference = part if reference is None else reference + part
                yield Progress("reference features", reference.stats.count, len(pixels))
            assert reference is not None
            save_reference(out / "reference.safetensors", reference)
            floor = _floor(reference)
            about = {**read_json(out / "manifest.json"), **about}
            about |= {"reference_sha256": data_digest(pixels), "preprocessing": PREPROCESSING}
        write_json(out / "manifest.json", about)
        write_json(out / "accuracy.json", accuracy)
        write_json(out / "floor.json", floor)
        publish(out, layout.FEATURES)


def _floor(reference: Reference) -> dict[str, float]:
    """What the distance of the data to itself is made of; nothing if there are too few images to tell."""
    try:
        found = frechet_floor(reference.parts)
    except ValueError:
        return {}
    return {"coefficient": float(f"{found.value:.6g}"), "std": float(f"{found.std:.3g}")}
