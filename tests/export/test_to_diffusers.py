"""diffusers draws our samples from the folder, with and without classes and patches."""

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel

from fmcore.export.formats import export
from fmcore.flow.pixels import quantise
from fmcore.flow.times import uniform_grid
from fmcore.model import load
from fmcore.models.folder import save_model
from fmcore.models.networks import UNet
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import EULER, integrate
from written import contents

KINDS = {
    "plain": (UNet(channels=(8, 16)), (1, 8, 8), None),
    "not square": (UNet(channels=(8,), attention=True), (3, 8, 4), None),
    "classes": (UNet(channels=(8, 16)), (3, 4, 8), 5),
    "patches": (UNet(channels=(8, 16), patch=2), (1, 8, 8), None),
    "patches and classes": (UNet(channels=(8,), patch=2), (3, 4, 8), 2),
}
PLAIN = ("plain", "not square")


def saved(folder, kind):
    config, shape, classes = KINDS[kind]
    torch.manual_seed(0)
    network = config.build(shape, classes)
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    options = {"network_config": config, "shape": shape, "num_classes": classes}
    save_model(folder, network, manifest={"stage": "base", "rounds": 0}, **options)
    return load(folder)


def exported(folder, kind, nfe):
    model = saved(folder / "m", kind)
    export(model, Sampling(nfe=nfe), "diffusers", folder / "d", folder=folder / "m", command="")
    return model


@pytest.mark.parametrize("nfe", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_draws_our_samples(tmp_path, kind, nfe):
    model = exported(tmp_path, kind, nfe)
    plain = kind in PLAIN
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "d", **({} if plain else {"trust_remote_code": True}))
    assert type(pipe).__name__ == ("DDPMPipeline" if plain else "FlowPipeline")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(6, *model.shape, generator=torch.Generator().manual_seed(7))
    label = None if model.num_classes is None else torch.arange(6) % model.num_classes
    wanted = integrate(model.field("fp32"), noise, uniform_grid(nfe), EULER, label)
    assert wanted.abs().max() > 1  # so that what is cut is seen

    given = {"generator": torch.Generator().manual_seed(7), "batch_size": 6}
    given |= {"num_inference_steps": nfe} if plain else {}
    given |= {} if label is None else {"class_labels": label.tolist()}
    found = pipe(output_type="pt", **given).images
    torch.testing.assert_close(found, (wanted / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)
    given["generator"].manual_seed(7)
    pixels = torch.stack([torch.tensor(list(image.tobytes())) for image in pipe(**given).images])
    ours = quantise(wanted).permute(0, 2, 3, 1).flatten(1)
    assert (pixels - ours.int()).abs().max() <= 1  # halves are rounded to even there, up here


def test_any_number_of_steps_and_any_labels(tmp_path):
    model = exported(tmp_path, "patches and classes", 1)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "d", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(5, *model.shape)
    wanted = integrate(model.field("fp32"), noise, uniform_grid(4), EULER, torch.ones(5, dtype=torch.int64))
    found = pipe(class_labels=1, latents=noise, num_inference_steps=4, output_type="pt", return_dict=False)[0]
    torch.testing.assert_close(found, (wanted / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)
    # Drawn ones are of the model's classes: the label for none is not among them.
    pipe.unet.class_embedding.weight.data[2] = torch.nan
    assert pipe(batch_size=40, output_type="pt").images.isfinite().all()
    for labels in ([2], [-1], [0, 1]):
        with pytest.raises(ValueError, match=r"class_labels: expected 5 in 0\.\.1" if len(labels) > 1 else "0..1"):
            pipe(class_labels=labels, latents=noise)


def test_a_model_without_classes_takes_no_label(tmp_path):
    exported(tmp_path, "patches", 1)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "d", trust_remote_code=True)
    with pytest.raises(ValueError, match="trained without classes"):
        pipe(class_labels=[0])


def test_code_is_not_run_unasked_and_the_network_needs_none(tmp_path):
    model = exported(tmp_path, "classes", 1)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "d")
    unet = UNet2DModel.from_pretrained(tmp_path / "d", subfolder="unet")
    for name, weight in model.network.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[name], weight)


def test_the_same_model_is_the_same_bytes(tmp_path):
    for place in ("a", "b"):
        exported(tmp_path / place, "patches and classes", 2)
    assert contents(tmp_path / "a/d") == contents(tmp_path / "b/d")
