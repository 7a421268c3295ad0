"""A U-Net as a folder that `DiffusionPipeline.from_pretrained` loads, and that draws the same samples.

The conventions meet in the scheduler: FlowMatchEulerDiscreteScheduler with `invert_sigmas` has its sigma run from
0 to 1 as our t does, adds the velocity that our networks predict, and hands them 1000 t. So no weight is changed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from fmcore.disk.files import read_json, write_file, write_json
from fmcore.flow.fields import OURS
from fmcore.flow.times import UniformGrid
from fmcore.model import Model
from fmcore.models.autoencoder import Decoder
from fmcore.models.networks import UNet, VelocityUNet
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import EULER

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PLAIN = """```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{folder}")
images = pipe(batch_size=4, num_inference_steps={steps}, generator=torch.Generator().manual_seed(0)).images
```

It is made of diffusers' own classes, and loads without any code from here. Pass `num_inference_steps={steps}`: the
scheduler's equal steps are for that number, and the pipeline's default is 1000.
"""
OWN = """```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True)
images = pipe(batch_size=4, generator=torch.Generator().manual_seed(0)).images{labels}
```

No pipeline of diffusers takes {why}, so `pipeline.py` comes with the model and `trust_remote_code` lets it run;
read it first, it is short. Network and scheduler are diffusers' own, and load without it:
`UNet2DModel.from_pretrained("{folder}", subfolder="unet")`.
"""


def check(model: Model, how: Sampling) -> None:
    """A ValueError for a model, or a way of sampling, that diffusers' classes cannot express."""
    config = model.network_config
    if not isinstance(config, UNet):
        raise ValueError(
            f"diffusers has no network like {config.name!r}: expected a unet; --to onnx and --to torch take this"
        )
    if model.convention != OURS:
        raise ValueError(
            f"its network predicts {model.convention.predicts} on the path {model.convention.path.name}, which "
            "diffusers does not sample: expected a velocity on the linear path; --to onnx and --to torch take this"
        )
    if how.method is not EULER or how.grid != UniformGrid() or how.guidance is not None:
        raise ValueError(
            f"diffusers takes equal Euler steps without guidance: expected --solver euler and no --guidance, got "
            f"{how.solver} and {how.guidance}"
        )


def write(model: Model, how: Sampling, folder: Path) -> None:
    """Writes the folder of a model that passed `check`."""
    from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler

    from fmcore.export import pipeline

    network = model.network
    assert isinstance(network, VelocityUNet)
    if _is_plain(model):
        # Its own grid ends at sigma 0.001; stretched to 1 / steps, its steps are equal.
        end = {"shift_terminal": 1 / how.steps} if how.steps > 1 else {}
        scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, **end)
        DDPMPipeline(network.unet, scheduler).save_pretrained(folder)
        return
    flow = pipeline.FlowPipeline(
        network.unet,
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=None if model.decoder is None else _vae(model.decoder),
        steps=how.steps,
        patch=network.patch,
        num_classes=model.num_classes,
    )
    flow.save_pretrained(folder)
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "_class_name": ["pipeline", "FlowPipeline"]})
    write_file(folder / "pipeline.py", Path(pipeline.__file__).read_bytes())


def _vae(decoder: Decoder) -> "AutoencoderKL":
    """The autoencoder with the moments of the latents, by the names under which diffusers keeps them."""
    from diffusers import AutoencoderKL

    found, units = decoder.autoencoder.network, decoder.encoding.units
    moments = {"latents_mean": list(units.mean), "latents_std": list(units.std)}
    vae = AutoencoderKL.from_config({**found.config, "scaling_factor": 1.0, "shift_factor": None, **moments})
    vae.load_state_dict(found.state_dict())
    return vae.eval()


def _is_plain(model: Model) -> bool:
    patch = getattr(model.network_config, "patch", 1)
    return model.num_classes is None and patch == 1 and model.encoding is None


def usage(model: Model, how: Sampling, folder: str) -> str:
    """How to load it, for the model card."""
    if _is_plain(model):
        return PLAIN.format(folder=folder, steps=how.steps)
    patch = getattr(model.network_config, "patch", 1)
    reasons = {
        "classes": model.num_classes is not None,
        "patches of pixels": patch > 1,
        "a flow of latents": True,
    }
    why = next(reason for reason, holds in reasons.items() if holds)
    labels = "" if model.num_classes is None else "\nsame = pipe(class_labels=[0, 0, 1]).images"
    return OWN.format(folder=folder, labels=labels, why=why)
