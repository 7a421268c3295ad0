"""Stage `features`: the feature extractor and the data's statistics under it, or the points held out."""

import torch

from flows import layout
from flows.events import Events, Metrics, Note, Progress
from flows.params import Params
from flows.setup import device_of
from flows.train import run_training
from flows.work import publish, workspace
from fmcore.features import (
    Reference,
    adopt_inception,
    data_digest,
    fitting,
    load_extractor,
    reference_parts,
    save_extractor,
    save_reference,
)
from fmcore.pixels import quantise
from fmcore.store import read_json, write_json, write_tensors
from fmcore.training import averaged, new_state

BATCH = 500


def features(params: Params, name: str) -> Events:
    """Fits or adopts the extractor; writes it with the reference that scores compare against."""
    recipe = params.model_dump(mode="json", include={"seed", "device", "data", "features"})
    recipe["checked"] = read_json(layout.CHECKED)
    device = device_of(params)
    data = params.data.load()
    with workspace("features", recipe) as work:
        out = work / "out"
        if params.features.extractor == "none":
            write_tensors(out / "reference.safetensors", {"x1": data.reference})
            write_json(
                out / "manifest.json", {"extractor": "none", "reference_sha256": data_digest(data.reference)}
            )
            write_json(out / "accuracy.json", {})
            publish(out, layout.FEATURES)
            return
        pixels = quantise(data.reference) if data.reference.is_floating_point() else data.reference
        section = params.features
        accuracy = {}
        if section.extractor == "inception":
            assert section.weights is not None
            adopt_inception(section.weights, out)
        else:
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
        extractor = load_extractor(out, device, section.weights)
        reference: Reference | None = None
        yield Progress("reference features", 0, len(pixels))
        for part in reference_parts(extractor, torch.split(pixels, BATCH), len(pixels)):
            reference = part if reference is None else reference + part
            yield Progress("reference features", reference.stats.count, len(pixels))
        assert reference is not None
        save_reference(out / "reference.safetensors", reference)
        manifest = read_json(out / "manifest.json")
        about = {"reference_sha256": data_digest(pixels), "image_shape": list(pixels.shape[1:])}
        write_json(out / "manifest.json", {**manifest, **about})
        write_json(out / "accuracy.json", accuracy)
        publish(out, layout.FEATURES)
