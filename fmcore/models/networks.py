"""Networks that predict a velocity: a residual MLP for points and small images, U-Nets for images and series.

Every network maps x (B, *D), t (B,) in [0, 1] and a class (B,) or None to a velocity (B, *D). Its
configuration is a frozen dataclass, from which (with the data's shape and number of classes) it is rebuilt. Our
conditional networks have one class more than the data: the null label of guidance.
"""

from dataclasses import dataclass
from math import pi, prod
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

TIME_FEATURES, SIGNAL = 64, 128
CLASS_CHANNELS = 8
# Far beyond what is trained, and small enough that a mistake is told before the network is built.
WIDEST, DEEPEST, LEVELS, OCTAVES = 2**16, 200, 12, 30
SIZES = f"channels that are multiples of 8, at most {WIDEST}, and layers in 1..{DEEPEST}"


def _sizes_fit(channels: tuple[int, ...], layers: int) -> bool:
    levels_fit = len(channels) <= LEVELS and all(8 <= c <= WIDEST and c % 8 == 0 for c in channels)
    return levels_fit and 1 <= layers <= DEEPEST


@dataclass(frozen=True)
class MLP:
    """Residual MLP on flattened data.

    Main arguments:
        width: hidden units.
        depth: residual blocks of two linear layers each.
        fourier: octaves of sin/cos features of each coordinate, for points; 0 for none. They resolve the
            sharp edges of 2-D densities, which a plain MLP blurs.
    """

    width: int = 512
    depth: int = 3
    fourier: int = 0
    name: Literal["mlp"] = "mlp"
    axes: ClassVar[tuple[int, ...]] = (1, 2, 3)  # of a sample it takes

    def __post_init__(self) -> None:
        if not (1 <= self.width <= WIDEST and 1 <= self.depth <= DEEPEST and 0 <= self.fourier <= OCTAVES):
            wanted = f"width in 1..{WIDEST}, depth in 1..{DEEPEST} and fourier in 0..{OCTAVES}"
            raise ValueError(f"mlp needs {wanted}, got {self.width}, {self.depth} and {self.fourier}")

    def build(self, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
        """The network for data of this shape."""
        return ResidualMLP(self, prod(shape), num_classes)


@dataclass(frozen=True)
class UNet:
    """diffusers' UNet2DModel.

    Main arguments:
        channels: width of each resolution level; each level after the first halves the image.
        layers: residual blocks a level.
        attention: self-attention on the levels after the first, and in the middle.
        dropout: in the residual blocks.
        patch: side of the squares of pixels that are taken as the channels of one position, so that the first
            level works at 1 / patch of the resolution (pixel unshuffle; Shi et al., arXiv:1609.05158). 1 for
            none; 2 makes a small U-Net several times faster on a CPU.
    """

    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    attention: bool = False
    dropout: float = 0.0
    patch: int = 1
    name: Literal["unet"] = "unet"
    axes: ClassVar[tuple[int, ...]] = (3,)

    def __post_init__(self) -> None:
        if not self.channels or not _sizes_fit(self.channels, self.layers):
            raise ValueError(f"unet needs {SIZES}, got {list(self.channels)} and {self.layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"unet needs 0 <= dropout < 1, got {self.dropout}")
        if self.patch < 1:
            raise ValueError(f"unet needs patch >= 1, got {self.patch}")

    def build(self, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
        """The network for images of shape (C, H, W)."""
        if len(shape) != 3:
            raise ValueError(f"unet needs images (C, H, W), got data of shape {shape}: use mlp for points")
        shrink = self.patch * 2 ** (len(self.channels) - 1)
        if shape[1] % shrink or shape[2] % shrink:
            levels = f"{len(self.channels)} levels" + (f" and patch {self.patch}" if self.patch > 1 else "")
            raise ValueError(f"unet with {levels} needs sides divisible by {shrink}, got {shape[1:]}")
        return VelocityUNet(self, shape, num_classes)


@dataclass(frozen=True)
class UNet1D:
    """diffusers' UNet1DModel, of the kind that Janner et al. planned with (arXiv:2205.09991), for series.

    Main arguments:
        channels: width of each resolution level; each level after the first halves the length.
        layers: residual blocks a level, besides one.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    layers: int = 1
    name: Literal["unet1d"] = "unet1d"
    axes: ClassVar[tuple[int, ...]] = (2,)

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or not _sizes_fit(self.channels, self.layers):
            raise ValueError(f"unet1d needs two or more {SIZES}, got {list(self.channels)} and {self.layers}")

    def build(self, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
        """The network for series of shape (C, L)."""
        if len(shape) != 2:
            raise ValueError(f"unet1d needs series (C, L), got data of shape {shape}")
        shrink = 2 ** (len(self.channels) - 1)
        if shape[1] % shrink:
            levels = len(self.channels)
            raise ValueError(f"unet1d with {levels} levels needs a length divisible by {shrink}, got {shape[1]}")
        return VelocityUNet1D(self, shape, num_classes)


@dataclass(frozen=True)
class Diffusers:
    """A diffusion model's UNet2DModel, as it was trained; `fmcore.intake.teachers` makes it from files.

    Main arguments:
        config: UNet2DModel's own.
        timesteps: steps of the noise schedule; the network is told (timesteps - 1) (1 - t).
        edm: (sigma_min, sigma_max, sigma_data, sign) of a network with EDM's preconditioning, which then predicts
            data on the VE path; else None.
    """

    config: dict[str, Any]
    timesteps: int = 1000
    edm: tuple[float, float, float, float] | None = None
    name: Literal["diffusers"] = "diffusers"

    def build(self, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
        """The network."""
        return DiffusersUNet(self)


@dataclass(frozen=True)
class Own:
    """A network of the user's, of (x, t) or (x, t, label), that fmcore can fill with weights but not build.

    Main arguments:
        module: its class, MODULE:CLASS, to be told to who loads it; it is never imported.
    """

    module: str
    name: Literal["own"] = "own"

    def build(self, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
        """A ValueError that says what to do."""
        raise ValueError(f"its network is {self.module}: make one, and give it to load(FOLDER, network=...)")


Network = MLP | UNet | UNet1D
StoredNetwork = Network | Diffusers | Own
NETWORKS = {config.name: config for config in get_args(Network)}
STORED_NETWORKS = NETWORKS | {Diffusers.name: Diffusers, Own.name: Own}


def initialised(config: StoredNetwork, shape: tuple[int, ...], num_classes: int | None, seed: int) -> nn.Module:
    """The network with initial weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(shape, num_classes)


def time_features(t: Float[Tensor, " B"]) -> Float[Tensor, "B features"]:
    """Sines and cosines of t at geometric frequencies from half a period to 16 periods over [0, 1]."""
    octaves = torch.linspace(0, 5, TIME_FEATURES // 2, device=t.device)
    angle = pi * t[:, None] * 2.0**octaves
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class ResidualMLP(nn.Module):
    """Residual blocks whose inputs the time (and class) scales and shifts; see `MLP` for the parameters.

    The modulation is FiLM (Perez et al., arXiv:1709.07871). x also goes straight to the output, times a learnt
    function of t: a velocity has a large part along x (-x_0, early on) that normalised layers cannot carry.
    """

    def __init__(self, config: MLP, dims: int, num_classes: int | None) -> None:
        super().__init__()
        self.fourier = config.fourier
        width = config.width
        self.enter = nn.Linear(dims * (1 + 2 * config.fourier), width)
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, SIGNAL), nn.SiLU(), nn.Linear(SIGNAL, SIGNAL), nn.SiLU()
        )
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, SIGNAL)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.depth))
        self.modulate = nn.ModuleList(nn.Linear(SIGNAL, 2 * width) for _ in range(config.depth))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.second: nn.Module | None = None  # of a flow map (`fmcore.models.flow_maps`)
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dims)
        self.gain = nn.Linear(TIME_FEATURES, 1)
        for layer in (*self.modulate, *self.outer, self.leave, self.gain):  # start as the identity, at velocity 0
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def has_second_time(self) -> bool:
        """Whether it is a flow map."""
        return self.second is not None

    def forward(
        self,
        x: Float[Tensor, "B *D"],
        t: Float[Tensor, " B"],
        label: Int64[Tensor, " B"] | None,
        s: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B *D"]:
        """See the module's docstring; a flow map takes a later time `s`, t if none is given."""
        flat = x.flatten(1)
        features = time_features(t)
        signal = self.time(features)
        if self.second is not None and s is not None:
            signal = signal + self.second(t, s)
        if self.classes is not None:
            signal = signal + self.classes(label)
        h = self.enter(self._octaves(flat) if self.fourier else flat)
        for norm, modulate, inner, outer in zip(self.norms, self.modulate, self.inner, self.outer, strict=True):
            scale, shift = modulate(signal).chunk(2, dim=1)
            h = h + outer(nn.functional.silu(inner(norm(h) * (1 + scale) + shift)))
        v: Tensor = self.leave(self.norm(h)) + self.gain(features) * flat
        return v.reshape(x.shape)

    def _octaves(self, flat: Float[Tensor, "B D"]) -> Float[Tensor, "B features"]:
        # Half a period spans 8 units at the first octave: the 2-D sets live in about [-4, 4].
        octaves = pi / 8 * 2.0 ** torch.arange(self.fourier, device=flat.device)
        angle = (flat[:, :, None] * octaves).flatten(1)
        return torch.cat([flat, angle.sin(), angle.cos()], dim=1)


class _AnyLayout(nn.Module):
    """Keeps diffusers' residual blocks from copying their input to another memory layout in every training step.

    They copy in training mode only, for the sake of DistributedDataParallel. Nothing else in them depends on the
    mode: their dropout is a module of its own.
    """

    def train(self, mode: bool = True) -> "_AnyLayout":
        from diffusers.models.resnet import ResnetBlock2D

        super().train(mode)
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                module.training = False
        return self


class VelocityUNet(_AnyLayout):
    """UNet2DModel with t in [0, 1]; only here does time become the 0..1000 it was designed for."""

    def __init__(self, config: UNet, shape: tuple[int, ...], num_classes: int | None) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.has_second_time = False  # `fmcore.models.flow_maps` gives it one
        self.patch, levels = config.patch, len(config.channels)
        channels, *sides = shape[0] * self.patch**2, shape[1] // self.patch, shape[2] // self.patch
        kinds = ["AttnDownBlock2D" if config.attention and i else "DownBlock2D" for i in range(levels)]
        self.unet = UNet2DModel(
            sample_size=sides[0] if sides[0] == sides[1] else tuple(sides),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=tuple(kinds),
            up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
            add_attention=config.attention,
            attention_head_dim=8,
            norm_num_groups=8,
            dropout=config.dropout,
            num_class_embeds=None if num_classes is None else num_classes + 1,
        )

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        t: Float[Tensor, " B"],
        label: Int64[Tensor, " B"] | None,
        s: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """See the module's docstring; a flow map takes a later time `s`, t if none is given."""
        if self.patch > 1:
            x = nn.functional.pixel_unshuffle(x, self.patch)
        told: Any = (label, t, t if s is None else s) if self.has_second_time else label
        v: Tensor = self.unet(x, 1000 * t, class_labels=told, return_dict=False)[0]
        return nn.functional.pixel_shuffle(v, self.patch) if self.patch > 1 else v


class VelocityUNet1D(nn.Module):
    """UNet1DModel with t in [0, 1], and with classes, which come as further channels of its input."""

    def __init__(self, config: UNet1D, shape: tuple[int, ...], num_classes: int | None) -> None:
        super().__init__()
        from diffusers import UNet1DModel

        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, CLASS_CHANNELS)
        self.unet = UNet1DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            extra_in_channels=CLASS_CHANNELS,  # without classes, too, so that weights fit if labels are dropped
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=("DownResnetBlock1D",) * len(config.channels),
            mid_block_type="MidResTemporalBlock1D",
            up_block_types=("UpResnetBlock1D",) * (len(config.channels) - 1),
            out_block_type="OutConv1DBlock",
            time_embedding_type="positional",
            use_timestep_embedding=True,
            act_fn="silu",
        )

    def forward(
        self, x: Float[Tensor, "B C L"], t: Float[Tensor, " B"], label: Int64[Tensor, " B"] | None
    ) -> Float[Tensor, "B C L"]:
        """See the module's docstring."""
        if self.classes is None:
            further = x.new_zeros(len(x), CLASS_CHANNELS, x.shape[2])
        else:
            further = self.classes(label)[:, :, None].expand(-1, -1, x.shape[2]).to(x.dtype)
        v: Tensor = self.unet(torch.cat([x, further], 1), 1000 * t, return_dict=False)[0]
        return v


class DiffusersUNet(_AnyLayout):
    """A diffusion model's network told t in [0, 1] (1 is data); see `Diffusers`."""

    def __init__(self, config: Diffusers) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.unet = UNet2DModel.from_config(config.config)
        self.timesteps, self.edm = config.timesteps, config.edm

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], label: Int64[Tensor, " B"] | None
    ) -> Float[Tensor, "B C H W"]:
        """The network's own prediction, or the data under EDM's preconditioning (arXiv:2206.00364, table 1)."""
        if self.edm is None:
            out: Tensor = self.unet(x, (self.timesteps - 1) * (1 - t), class_labels=label, return_dict=False)[0]
            return out
        low, high, data, sign = self.edm
        sigma = (high * (low / high) ** t)[:, None, None, None]
        norm = (sigma**2 + data**2).sqrt()
        out = self.unet(x / norm, sigma.flatten().log() / 4, class_labels=label, return_dict=False)[0]
        return (data / norm) ** 2 * x + sign * (sigma * data / norm) * out


def transfer(network: nn.Module, source: nn.Module) -> bool:
    """Copies the source's weights into a network of the same architecture; False, and no copy, for another one.

    Dropout may differ, and so may the classes: the class embedding is copied only if it has the same shape.
    """
    old, new = source.state_dict(), network.state_dict()
    classes = {
        name for name in old.keys() | new.keys() if name in ("classes.weight", "unet.class_embedding.weight")
    }
    if type(network) is not type(source) or old.keys() - classes != new.keys() - classes:
        return False
    if any(old[name].shape != new[name].shape for name in new.keys() - classes):
        return False
    fitting = {n for n in classes if n in old and n in new and old[n].shape == new[n].shape}
    network.load_state_dict({**new, **{name: old[name] for name in (old.keys() - classes) | fitting}})
    return True
