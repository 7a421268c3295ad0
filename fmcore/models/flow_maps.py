"""Flow maps: networks of two times, whose output is the mean velocity of a flow from time t to a later time s.

X(x; t, s) = x + (s - t) u(x, t, s) carries a point of the flow from t to s in one evaluation (Boffi et al.,
arXiv:2406.07507 and arXiv:2505.18825; u is the average velocity of Geng et al., arXiv:2505.13447). Where the two
times are one, u(x, t, t) = v(x, t) is the velocity.
"""

from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fmcore.models.networks import MLP, SIGNAL, ResidualMLP, UNet, VelocityUNet

# Half periods over [0, 1]; those of the first time reach 32. Derivatives by the second time multiply by them.
OCTAVES = (0.5, 1.0, 2.0)
HIDDEN = 128


TakesSecondTime = MLP | UNet


@dataclass(frozen=True)
class FlowMap:
    """A network with a second time.

    Main arguments:
        inner: the network that takes it: u(x, t, t) is its output, to the last bit.
    """

    inner: TakesSecondTime
    name: Literal["flow_map"] = "flow_map"

    def build(self, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
        """The network for data of this shape."""
        return with_second_time(self.inner.build(shape, num_classes))


class SecondTime(nn.Module):
    """What a second time adds to the embedding of the first: (s - t) g(t, s), with g = 0 before it is trained.

    So it adds nothing where s = t.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.enter = nn.Linear(4 * len(OCTAVES), HIDDEN)
        self.leave = nn.Linear(HIDDEN, size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, t: Float[Tensor, " B"], s: Float[Tensor, " B"]) -> Float[Tensor, "B size"]:
        """See the class."""
        octaves = pi * torch.tensor(OCTAVES, device=t.device)
        angle = torch.cat([t[:, None] * octaves, (s - t)[:, None] * octaves], 1)
        g: Tensor = self.leave(nn.functional.silu(self.enter(torch.cat([angle.sin(), angle.cos()], 1))))
        return (s - t)[:, None] * g


class _Told(nn.Module):
    """What diffusers' U-Net adds to the embedding of its time: that of a class, if there are any, and of times."""

    def __init__(self, classes: nn.Module | None, second: SecondTime) -> None:
        super().__init__()
        self.classes, self.second = classes, second

    def forward(self, told: tuple[Int64[Tensor, " B"] | None, Tensor, Tensor]) -> Tensor:
        label, t, s = told
        added: Tensor = self.second(t, s)
        return added if self.classes is None else added + self.classes(label)


def with_second_time(network: nn.Module) -> nn.Module:
    """Gives a network a second time, in place; what it does at s = t stays.

    Raises:
        ValueError: for a network that cannot take one.
    """
    if isinstance(network, ResidualMLP):
        network.second = SecondTime(SIGNAL)
    elif isinstance(network, VelocityUNet):
        size = network.unet.time_embedding.linear_2.out_features
        network.unet.class_embedding = _Told(network.unet.class_embedding, SecondTime(size))
        network.has_second_time = True
    else:
        raise ValueError(f"a {type(network).__name__} takes no second time: expected an mlp or a unet")
    return network
