"""Stage `features`: the feature extractor and the data's statistics under it, or the points held out."""

from flows import layout
from flows.events import Events, Metrics, Note, Progress
from flows.params import Params
from flows.setup import device_of
from flows.work import publish, workspace
from fmcore.features import (
    adopt_inception,
    data_digest,
    feature_stats,
    fit,
    load_extractor,
    save_stats,
)
from fmcore.metrics import Stats
from fmcore.pixels import quantise
from fmcore.store import read_json, write_json, write_tensors


def features(params: Params, name: str) -> Events:
    """Fits or adopts the extractor; writes it with the reference that scores compare against."""
    recipe = params.model_dump(mode="json", include={"seed", "device", "data", "features"})
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
        pixels = data.reference if data.reference.dtype.is_floating_point is False else quantise(data.reference)
        if params.features.extractor == "inception":
            assert params.features.weights is not None
            adopt_inception(params.features.weights, out)
            accuracy = {}
        else:
            config = params.features.train
            total = config.steps * config.batch_size
            yield Progress("fit features", 0, total)
            for record in fit(
                params.features.extractor,
                pixels.to(device),
                None if data.label is None else data.label.to(device),
                data.num_classes,
                config,
                seed=params.seed,
                folder=out,
            ):
                yield Progress("fit features", record.images, total)
                yield Metrics(record.images, {"loss": record.loss})
            held_out = read_json(out / "manifest.json")["held_out_accuracy"]
            accuracy = {"held_out_accuracy": held_out}
            yield Metrics(0, accuracy)
            yield Note(f"feature classifier: held-out accuracy {held_out:.3f}")
        extractor = load_extractor(out, device)
        reference: Stats | None = None
        yield Progress("reference features", 0, len(pixels))
        for part in feature_stats(extractor, pixels):
            reference = part if reference is None else reference + part
            yield Progress("reference features", reference.count, len(pixels))
        assert reference is not None
        save_stats(out / "reference.safetensors", reference)
        manifest = read_json(out / "manifest.json")
        write_json(out / "manifest.json", {**manifest, "reference_sha256": data_digest(pixels)})
        write_json(out / "accuracy.json", accuracy)
        publish(out, layout.FEATURES)
