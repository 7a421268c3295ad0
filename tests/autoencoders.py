"""Small autoencoders as diffusers writes them: random ones, and one that was trained on scikit-learn's digits."""

import torch
from diffusers import AutoencoderKL

from fmcore.intake.known import Digits

SETTINGS = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 8,
    "mid_block_add_attention": False,
}


def random_vae(channels=1, seed=0, **options):
    """Images of `channels` to latents of 4 channels and half the sides."""
    torch.manual_seed(seed)
    settings = SETTINGS | {"in_channels": channels, "out_channels": channels} | options
    return AutoencoderKL(**settings).eval().requires_grad_(False)


def vae_of_digits(folder, steps=150):
    """Writes one that loses little of the digits; it takes seconds."""
    images = Digits().load().x1
    vae = random_vae().train().requires_grad_(True)
    adam = torch.optim.Adam(vae.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 4e-3, steps)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = images[torch.randint(len(images), (64,), generator=g)]
        loss = (vae.decode(vae.encode(x).latent_dist.mean).sample - x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        rate.step()
    vae.save_pretrained(folder)
    return folder
