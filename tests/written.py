"""Models and pairs as tests of what lies on disk write them, and ways to damage a file."""

import torch

from fmcore.disk.pairs import seal_pairs, write_shard
from fmcore.flow.couplings import Pairs
from fmcore.models.folder import save_model
from fmcore.models.networks import MLP, UNet, UNet1D

MODELS = {
    "mlp": (MLP(width=16, depth=1), (2,), None),
    "mlp with classes": (MLP(width=16, depth=2, fourier=2), (1, 4, 4), 3),
    "unet": (UNet(channels=(8, 16)), (1, 8, 8), None),
    "unet1d": (UNet1D(channels=(8, 16)), (2, 8), 3),
    "unet with classes": (UNet(channels=(8,), attention=True), (3, 8, 4), 5),
}


def write_network(folder, config, shape, classes=None, *, spread=0.1, spoil=None, **manifest):
    """A model's folder with random weights everywhere; the last layer of a new network is zero."""
    torch.manual_seed(0)
    network = config.build(shape, classes)
    for parameter in network.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))
    if spoil is not None:
        next(network.parameters()).data.flatten()[3] = spoil
    about = {"stage": "base"} | manifest
    save_model(folder, network, network_config=config, shape=shape, num_classes=classes, manifest=about)
    return network.eval()


def write_model(folder, kind="mlp", spoil=None):
    return write_network(folder, *MODELS[kind], spread=0.05, spoil=spoil, grid=None)


def write_pairs(folder, shards=3, size=4, label=True, seal=True):
    rows = []
    for i in range(shards):
        noise = torch.randn((2, size, 2), generator=torch.Generator().manual_seed(i))
        batch = Pairs(noise[0], noise[1], torch.arange(size) + i if label else None)
        halves = [Pairs(*(None if v is None else v[s] for v in batch)) for s in (slice(0, 1), slice(1, None))]
        rows.append(write_shard(folder, i * size, halves))
    if seal:
        seal_pairs(folder, reversed(rows), {"teacher": "abc", "seed": 3})
    return rows


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def scramble(path):
    path.write_bytes(b"\xff\xfe not what it was")


def remove(path):
    path.unlink()
