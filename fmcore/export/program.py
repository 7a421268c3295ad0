"""A model and its way of sampling as one program: a file of ONNX, or one of torch.export.

The steps are unrolled, so their number, their times and the guidance are fixed; the size of a batch is free. The
inputs are `noise`, standard normal float32 (N, *shape), and for a conditional model `label`, int64 (N,).
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from fmcore.disk.files import ArtifactError
from fmcore.export.images import are_images
from fmcore.flow.errors import first_line
from fmcore.flow.fields import OURS, VelocityField, network_field
from fmcore.flow.pixels import quantise
from fmcore.model import Model
from fmcore.models.autoencoder import Decoder
from fmcore.ode.sampling import Sampling

MOST_EVALUATIONS = 64  # each one is a copy of the network's graph
ONNX, TORCH = "model.onnx", "model.pt2"
_LABEL = "label = np.array([0, 0, 1, 1], dtype=np.int64)\n"


class Evaluation(NamedTuple):
    """One evaluation: the velocity is `skip` x + `out` network(`scale` x, `time`)."""

    time: float
    scale: float
    skip: float
    out: float


class Sampler(nn.Module):
    """Carries noise to samples as `Model.sample` does in float32.

    Main arguments:
        pixels: whether the samples are images that end as 8-bit pixels (N, H, W, C), the layout of image files.
    """

    def __init__(self, model: Model, how: Sampling, *, pixels: bool) -> None:
        super().__init__()
        self.network = _without_questions(model.network)
        self.model, self.guidance = model, how.guidance
        self.evaluations = None if model.convention == OURS else _evaluations(model, how)
        self.method, self.knots, self.pixels = how.method, how.knots().tolist(), pixels
        units = model.units if model.encoding is None else model.encoding.units
        self.has_units = units is not None
        if units is not None:
            form = (-1, *(1 for _ in model.shape[1:]))
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(units, name)).view(form), persistent=False)
        self.decoding: _Decoding | None = None if model.decoder is None else _Decoding(model.decoder)

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """See the module's docstring."""
        field = network_field(self.network, "fp32")
        if self.evaluations is not None:
            field = _scaled(field, self.evaluations)
        x = noise
        with torch.no_grad():
            for state in self.method.walk(self.model.guide(field, self.guidance), noise, self.knots, label):
                x = state
        if self.has_units:
            x = x * self.get_buffer("std") + self.get_buffer("mean")
        if self.decoding is not None:
            x = self.decoding(x)
        return quantise(x).permute(0, 2, 3, 1) if self.pixels else x


class _Decoding(nn.Module):
    """Makes images of latents in their own units; of the autoencoder it holds what that takes, and no more."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        network: Any = _without_questions(decoder.autoencoder.network)
        self.enter, self.decoder = network.post_quant_conv, network.decoder

    def forward(self, z: Tensor) -> Tensor:
        found: Tensor = self.decoder(z if self.enter is None else self.enter(z))
        return found


def _scaled(field: VelocityField, evaluations: Iterable[Evaluation]) -> VelocityField:
    """The velocity of a field of another convention, at the times of its evaluations in turn."""
    rest = iter(evaluations)

    def scaled(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        at = next(rest)
        return at.skip * x + at.out * field(at.scale * x, torch.full_like(t, at.time), label)

    return scaled


class _Probe(nn.Module):
    """A network whose output is a number, and that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(()))
        self.value = 0.0
        self.given = (0.0, 0.0)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.given = (float(x.flatten()[0]), float(t[0]))
        return torch.full_like(x, self.value)


def _evaluations(model: Model, how: Sampling) -> list[Evaluation]:
    """What the conversions between conventions come to, each time the network is evaluated.

    They are affine in x and in the network's output, so four numbers say all of one; found by trying. As tensors
    of times they would take double precision, and searches in tables, which runtimes of ONNX lack.
    """
    probe = _Probe()
    field = replace(model, network=probe).field("fp32")
    found = []

    def tried(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        one = torch.ones(1, 1, dtype=torch.float64)
        probe.value = 1.0
        out = float(field(0 * one, t[:1], None))
        probe.value = 0.0
        skip = float(field(one, t[:1], None))
        scale, time = probe.given
        found.append(Evaluation(time, scale, skip, out))
        return x

    label = None if model.num_classes is None else torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for _ in how.method.walk(model.guide(tried, how.guidance), torch.zeros(1, 1), how.knots().tolist(), label):
            pass
    return found


class _Doubled(nn.Module):
    """diffusers' Upsample2D, which asks for the size of the batch: below 64 or not."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, output_size: int | None = None) -> Tensor:
        found: Tensor = self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return found


def _without_questions(network: nn.Module) -> nn.Module:
    """A copy that computes the same, and can be traced for all sizes of batch at once."""
    from diffusers.models.upsampling import Upsample2D

    network = deepcopy(network).cpu()
    for name, module in list(network.named_modules()):
        if isinstance(module, Upsample2D) and module.use_conv and module.interpolate:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, _Doubled(module.conv))
    return network


def check(model: Model, how: Sampling) -> None:
    """A ValueError for a way of sampling, or a model, that one program cannot hold."""
    if how.method.stochastic:
        raise ValueError(f"{how.solver} draws noise at each step: expected a solver that only needs its start")
    if how.nfe > MOST_EVALUATIONS:
        raise ValueError(
            f"each evaluation is a copy of the network's graph: expected --nfe of at most {MOST_EVALUATIONS}, "
            f"got {how.nfe}"
        )
    if model.convention.clip is not None:
        raise ValueError(
            "its predicted data is cut at every step, as that of a diffusion model taken as it is: expected a "
            "model trained from it"
        )


def _inputs(model: Model) -> dict[str, Tensor]:
    """Two of each input."""
    label = {} if model.num_classes is None else {"label": torch.zeros(2, dtype=torch.int64)}
    return {"noise": torch.zeros(2, *model.shape)} | label


def traced(model: Model, how: Sampling, *, pixels: bool) -> ExportedProgram:
    """The program, without a word of the files it came from."""
    inputs, batch = _inputs(model), Dim("batch", min=1)
    sampler = Sampler(model, how, pixels=pixels).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(
                sampler, tuple(inputs.values()), dynamic_shapes=({0: batch},) * len(inputs)
            )
    except RuntimeError as error:
        raise ArtifactError(f"torch.export cannot trace this network: {first_line(error)}") from None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write_torch(model: Model, how: Sampling, folder: Path) -> None:
    """Writes `model.pt2`: it returns what `Model.sample` does, (N, *shape) float32."""
    torch.export.save(traced(model, how, pixels=False), folder / TORCH)


def write_onnx(model: Model, how: Sampling, folder: Path) -> None:
    """Writes `model.onnx`, which returns `images`, uint8 (N, H, W, C).

    What is not grey or RGB comes as `samples`, float32 (N, *shape), instead. Weights of more than 2 GB come as a
    file beside it.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    pixels = are_images(model)
    found = torch.onnx.export(
        traced(model, how, pixels=pixels),
        input_names=list(_inputs(model)),
        output_names=["images" if pixels else "samples"],
        verbose=False,
    )
    assert found is not None
    shape = found.model.graph.inputs[0].shape
    assert shape is not None
    found.rename_axes({str(shape[0]): "batch"})
    ClearMetadataAndDocStringPass()(found.model)  # the paths of the code it came from
    found.save(folder / ONNX)


def onnx_usage(model: Model, how: Sampling, folder: str) -> str:
    """How to run it, for the model card."""
    images = are_images(model)
    label, feed = ("", "") if model.num_classes is None else (_LABEL, ', "label": label')
    gives = "`images`, uint8 (N, H, W, C)" if images else "`samples`, float32"
    text = f"""import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{folder}/{ONNX}")
noise = np.random.default_rng(0).standard_normal((4, {", ".join(map(str, model.shape))}), dtype=np.float32)
{label}(x1,) = session.run(None, {{"noise": noise{feed}}})
"""
    return f"```python\n{text}```\n\nIt returns {gives}. {_free(model)}\n"


def _free(model: Model) -> str:
    labels = "" if model.num_classes is None else f" Labels run from 0 to {model.num_classes - 1}, unchecked."
    return f"The batch is free; the number of steps is fixed.{labels}"


def torch_usage(model: Model, how: Sampling, folder: str) -> str:
    """How to run it, for the model card."""
    label, feed = ("", "") if model.num_classes is None else ("label = torch.tensor([0, 0, 1, 1])\n", ", label")
    text = f"""import torch

sample = torch.export.load("{folder}/{TORCH}").module()
noise = torch.randn(4, {", ".join(map(str, model.shape))})
{label}x1 = sample(noise{feed})
"""
    ranged = ", images in [-1, 1] up to the model's error" if model.makes_images else ""
    return (
        f"```python\n{text}```\n\nIt needs torch and nothing else, and returns float32{ranged}. {_free(model)} "
        "`torch.export.load` reads pickles, so load only what comes from people you trust.\n"
    )
