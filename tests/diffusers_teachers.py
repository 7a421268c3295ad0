"""Diffusion models as diffusers writes them: random networks, their folders, and its own sampling of them."""

import torch
from diffusers import UNet2DModel

from fmcore.flow.fields import network_field
from fmcore.ode.solvers import SOLVERS, trajectory

EULER = SOLVERS["euler"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]

SETTINGS = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "add_attention": False,
    "norm_num_groups": 8,
}


def unet(channels=1, gain=1.0, seed=0, **options):
    """A random UNet2DModel whose outputs are about `gain` large, not the near zeros it starts from."""
    torch.manual_seed(seed)
    settings = SETTINGS | {"in_channels": channels, "out_channels": channels}
    network = UNet2DModel(**(settings | options)).eval().requires_grad_(False)
    x = torch.randn(16, network.config.in_channels, 8, 8)
    label = None if network.class_embedding is None else torch.zeros(16, dtype=torch.int64)
    size = network(x, torch.arange(16) * 60, class_labels=label).sample.std()
    network.conv_out.weight *= gain / size
    network.conv_out.bias *= gain / size
    return network


def saved(folder, network, schedule):
    network.save_pretrained(folder / "unet", safe_serialization=True)
    schedule.save_pretrained(folder / "scheduler")
    return folder


def field_of(teacher):
    return network_field(teacher.network, "fp32", teacher.convention)


def noise(count, shape=(1, 8, 8), seed=0):
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def ddim(network, schedule, x, steps, label=None):
    """diffusers' own sampling, and the linear time of each of its states: [(t, x / (a + s)), ...]."""
    # Ours cuts the predicted data and takes the noise that belongs to it, so that both still make up x.
    clips = schedule.config.clip_sample
    schedule.set_timesteps(steps)
    after = [*schedule.timesteps[1:].tolist(), None]
    assert all(
        b is None or a - b == schedule.config.num_train_timesteps // steps
        for a, b in zip(schedule.timesteps.tolist(), after, strict=True)
    ), "DDIMScheduler steps elsewhere than to its next timestep"
    levels = [schedule.alphas_cumprod[i] for i in schedule.timesteps] + [schedule.final_alpha_cumprod]
    states = [x]
    for i in schedule.timesteps:
        out = network(states[-1], i, class_labels=label).sample
        states.append(schedule.step(out, i, states[-1], eta=0.0, use_clipped_model_output=clips).prev_sample)
    scales = [(float(level) ** 0.5, float(1 - level) ** 0.5) for level in levels]
    return [(a / (a + s), state / (a + s)) for (a, s), state in zip(scales, states, strict=True)]


def assert_same_states(field, theirs, label=None, rtol=1e-3):
    """Our Euler trajectory through their knots meets their states, relative to the size of each."""
    knots = torch.tensor([t for t, _ in theirs], dtype=torch.float64)
    ours = list(trajectory(field, theirs[0][1], knots, EULER, label))
    for (t, expected), x in zip(theirs, ours, strict=True):
        assert (x - expected).norm() <= rtol * expected.norm(), t
    return ours
