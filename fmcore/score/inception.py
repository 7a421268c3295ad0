"""The Inception network of FID proper: finding and checking its weights, and its features.

The network is torch-fidelity's `inception-v3-compat`, a port of the TensorFlow graph that FID was defined with
(Heusel et al., arXiv:1706.08500), with its resizing to 299 pixels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fmcore.disk.files import sha256
from fmcore.flow.errors import first_line

INCEPTION_DIMS = 2048
# The published weights carry the first digits of their SHA-256 in their name.
INCEPTION_NAME, INCEPTION_SHA = "weights-inception-2015-12-05-6726825d.pth", "6726825d"
BATCH = 64  # images at a time, however many come: at 299 pixels a layer takes some 3 MB an image


def find_inception(weights: str | None, download: bool = False) -> Path:
    """The file of Inception's weights: the one named, else that in torch's usual cache.

    Main arguments:
        weights: a path; None for the cache, as torch-fidelity itself looks for them.
        download: fetch the published file if it is missing; never done for a file of another name.

    Raises:
        ValueError: if it is missing, cannot be fetched, or has the published name and other content.
    """
    path = Path(weights) if weights else Path(torch.hub.get_dir(), "checkpoints", INCEPTION_NAME)
    is_published = path.name == INCEPTION_NAME
    if not path.is_file() and is_published and download:
        _fetch(path)
    if not path.is_file():
        raise ValueError(
            f"no Inception weights at {path}: put {_url()} there, or name your copy (features.weights, "
            "--weights), or let features.download: true fetch it into torch's cache"
        )
    if is_published and not (digest := sha256(path)).startswith(INCEPTION_SHA):
        raise ValueError(
            f"{path}: expected SHA-256 beginning {INCEPTION_SHA}, got {digest[:8]}: damaged or another file"
        )
    return path


def _url() -> str:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def _fetch(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_url(), str(path), hash_prefix=INCEPTION_SHA, progress=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Inception weights could not be fetched from {_url()} to {path}: {error}") from None


Network = Callable[[Tensor], Tensor]


def load_inception(path: Path, device: torch.device | str = "cpu") -> tuple[Network, Network]:
    """Two functions: uint8 NCHW to features (N, 2048), and features to `logits_unbiased` (N, 1008), without bias.

    Raises:
        ValueError: if the file is not a plain dictionary of Inception's tensors.
    """
    network = _network(path).to(device)

    def features(pixels: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        if pixels.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes grey or RGB images, got {pixels.shape[1]} channels")
        return torch.cat(
            [network(part.expand(-1, 3, -1, -1).to(device))[0] for part in torch.split(pixels, BATCH)]
        )

    def logits(features: Float[Tensor, "N D"]) -> Float[Tensor, "N classes"]:
        return features.mm(network.fc.weight.T)

    return features, logits


def _network(path: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        found = torch.load(path, weights_only=True, map_location="cpu")  # torch-fidelity would unpickle anything
    except Exception as error:
        raise ValueError(f"{path} is not a file of weights: {first_line(error)}") from None
    if not (isinstance(found, dict) and found and all(isinstance(v, Tensor) for v in found.values())):
        raise ValueError(f"{path} is not a file of weights but a {type(found).__name__}")
    try:
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", [str(INCEPTION_DIMS)], feature_extractor_weights_path=str(path)
        )
    except RuntimeError as error:  # torch lists every tensor that is missing
        raise ValueError(f"{path} does not hold Inception's weights: {first_line(error)}") from None
    return network
