"""LPIPS, a perceptual distance between images, and the reflow loss built on it.

LPIPS is eq. 1 of Zhang et al. (arXiv:1801.03924) on VGG16, v0.1. Nothing is downloaded: the user names both files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from fmcore.flow.paths import expand

BACKBONE = "torchvision's vgg16-397923af.pth (from download.pytorch.org)"
LINEAR = "LPIPS v0.1's vgg.pth (in richzhang/PerceptualSimilarity) or torch-fidelity's weights-vgg16-lpips.pth"
TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}  # relu1_2, 2_2, 3_3, 4_3, 5_3 and their channels
MIN_SIZE = 16  # four poolings lie before the last tap

Images = Float[Tensor, "B C H W"]


class LPIPS(nn.Module):
    """Sum over taps, mean over pixels, of w . (f(a) - f(b))^2; f are activations, of unit length per pixel."""

    shift: Tensor
    spread: Tensor

    def __init__(self) -> None:
        from torchvision.models import vgg16

        super().__init__()
        self.features = vgg16(weights=None).features[: max(TAPS) + 1]
        self.linear = nn.ParameterList(torch.empty(1, channels, 1, 1) for channels in TAPS.values())
        for name, rgb in (("shift", [-0.030, -0.088, -0.188]), ("spread", [0.458, 0.448, 0.450])):
            self.register_buffer(name, torch.tensor(rgb, device="cpu").reshape(3, 1, 1), persistent=False)

    def forward(self, a: Images, b: Images, size: int | None = None) -> Float[Tensor, " B"]:
        """Grey or RGB images in [-1, 1], resized bilinearly to size x size if it is given; float32 throughout."""
        if a.ndim != 4 or a.shape[1] not in (1, 3) or min(size or MIN_SIZE, size or min(a.shape[2:])) < MIN_SIZE:
            got = f"{tuple(a.shape)} and size {size}"
            raise ValueError(
                f"lpips needs images (B, 1 or 3, H, W) of {MIN_SIZE} or more pixels a side, got {got}"
            )
        with torch.autocast(a.device.type, enabled=False):
            taps = zip(self.linear, self._taps(a, size), self._taps(b, size), strict=True)
            return torch.stack([(w * (f - g).square()).sum(1).mean((1, 2)) for w, f, g in taps]).sum(0)

    def _taps(self, x: Images, size: int | None) -> Iterator[Tensor]:
        x = (x.float().expand(-1, 3, -1, -1) - self.shift) / self.spread
        if size and x.shape[2:] != (size, size):
            x = interpolate(x, (size, size), mode="bilinear", align_corners=False)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                yield normalize(x, dim=1, eps=1e-10)  # epsilon: the authors'


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # weights made inside inference mode would let no gradient pass
def load_lpips(backbone: str, linear: str, device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS with the weights of two files, frozen; files are read once. ValueError if one is not as expected."""
    with torch.device("meta"):  # no time and no random numbers spent on weights that are replaced
        network = LPIPS()
    wanted = {f"features.{name}": tuple(value.shape) for name, value in network.features.state_dict().items()}
    weights = _read("backbone", backbone, BACKBONE, wanted)
    wanted = {f"lin{i}.model.1.weight": tuple(w.shape) for i, w in enumerate(network.linear)}
    for i, value in enumerate(_read("linear", linear, LINEAR, wanted).values()):
        weights[f"linear.{i}"] = value
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval().to(device)


def _read(role: str, file: str, published: str, wanted: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The wanted tensors of a file, as float32."""

    def refusal(what: str) -> ValueError:
        return ValueError(f"lpips {role}: {file!r} {what}; expected {published}")

    if not Path(file).is_file():
        raise refusal("is no file, and nothing is downloaded for you")
    if not file.endswith((".pth", ".safetensors")):
        raise refusal("is neither .pth nor .safetensors")
    try:
        pth = file.endswith(".pth")
        found = torch.load(file, "cpu", weights_only=True) if pth else safetensors.torch.load_file(file)
        shapes = {name: tuple(value.shape) for name, value in found.items()}
    except Exception as error:  # torch's message advises to load the file unsafely
        raise refusal(f"is not a file of plain tensors ({type(error).__name__})") from None
    wrong = [name for name, shape in wanted.items() if shapes.get(name) != shape]
    if wrong:
        name, names = wrong[0], ", ".join(str(name) for name in list(shapes)[:2])
        got = f"{shapes[name]}" if name in shapes else f"nothing (its first names: {names})"
        raise refusal(f"differs in {len(wrong)} of {len(wanted)} tensors: {name} is {got}, not {wanted[name]}")
    return {name: found[name].to(torch.float32, copy=True) for name in wanted}  # a copy lets go of the file


def pseudo_huber(a: Float[Tensor, "B *D"], b: Float[Tensor, "B *D"], scale: float) -> Float[Tensor, " B"]:
    """(sqrt(|a - b|^2 + c^2) - c) / D per sample, with c = `scale` * D."""
    dims = prod(a.shape[1:])
    c = scale * dims
    return ((a - b).flatten(1).square().sum(1).add(c * c).sqrt() - c) / dims


@dataclass(frozen=True)
class Perceptual:
    """LPIPS(x1_hat, x1) + t h(v, u_t), where x1_hat = x_t + (1 - t) v is the data that v predicts.

    Lee et al. (arXiv:2405.20320), whose time is 1 - t; h is the pseudo-Huber distance. `huber` keeps the second
    term, `over_noise` divides LPIPS by 1 - t. Images are resized to `size`. Lee et al. resize to 224, and replace
    VGG's max pooling by average pooling.
    """

    backbone: str
    linear: str
    size: int = 64
    huber: bool = True
    over_noise: bool = False
    scale: float = 0.00054
    name: Literal["lpips"] = "lpips"

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.size < MIN_SIZE:
            raise ValueError(f"lpips needs scale > 0 and size >= {MIN_SIZE}, got {self.scale} and {self.size}")

    def __call__(self, v: Images, u_t: Images, x_t: Images, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        noise, lpips = expand(1 - t, x_t), load_lpips(self.backbone, self.linear, x_t.device)
        loss: Tensor = lpips(x_t + noise * v, x_t + noise * u_t, self.size)
        if self.over_noise:
            loss = loss / (1 - t).clamp(min=1e-5)
        return loss + t * pseudo_huber(v, u_t, self.scale) if self.huber else loss
