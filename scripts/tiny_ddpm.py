"""Trains a small DDPM on scikit-learn's 8x8 digits, to try `base: {teacher: PATH}` with. Under a minute on a CPU.

Nothing here is fmcore's: a UNet2DModel, diffusers' own schedule and the mean squared error of what it predicts
(Ho et al., arXiv:2006.11239). What it leaves in OUT is what diffusers itself reads back:

    python scripts/tiny_ddpm.py work/tiny_ddpm
    python scripts/tiny_ddpm.py work/tiny_ddpm_v --prediction v_prediction --conditional
"""

import argparse
import math
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits

PREDICTIONS = ("epsilon", "v_prediction", "sample")
BATCH, LR = 64, 3e-3


def trained_ddpm(
    steps: int, prediction: str = "epsilon", conditional: bool = False, seed: int = 0, every: int = 200
) -> tuple[UNet2DModel, DDPMScheduler, list[float]]:
    """A DDPM of the digits, scaled to [-1, 1].

    Returns:
        the network, its schedule, and the mean loss of every `every` steps.
    """
    digits = load_digits()
    x1, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
        norm_num_groups=8,
        num_class_embeds=10 if conditional else None,
    )
    schedule = DDPMScheduler(prediction_type=prediction)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0, fused=True)
    losses: list[float] = []
    total = 0.0
    for step in range(steps):
        rate = min(1.0, (step + 1) / 50) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = LR * rate
        rows = torch.randint(len(x1), (BATCH,))
        data, noise = x1[rows], torch.randn(BATCH, *x1.shape[1:])
        timesteps = torch.randint(len(schedule.alphas_cumprod), (BATCH,))
        noisy = schedule.add_noise(data, noise, timesteps)
        if prediction == "v_prediction":
            target = schedule.get_velocity(data, noise, timesteps)
        else:
            target = noise if prediction == "epsilon" else data
        out = network(noisy, timesteps, class_labels=labels[rows] if conditional else None).sample
        loss = (out - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            losses.append(total / (step % every + 1))
            total = 0.0
    return network.eval(), schedule, losses


def save(network: UNet2DModel, schedule: DDPMScheduler, out: Path) -> None:
    """Writes unet/config.json, unet/diffusion_pytorch_model.safetensors and scheduler/scheduler_config.json."""
    network.save_pretrained(out / "unet", safe_serialization=True)
    schedule.save_pretrained(out / "scheduler")


def main() -> None:
    """Trains and saves one."""
    parser = argparse.ArgumentParser(description="Train a small DDPM on the 8x8 digits.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to save it in")
    parser.add_argument("--prediction", choices=PREDICTIONS, default="epsilon", help="what the network predicts")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps of 64 images")
    parser.add_argument("--conditional", action="store_true", help="tell the network the class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    network, schedule, losses = trained_ddpm(args.steps, args.prediction, args.conditional, args.seed)
    save(network, schedule, args.out)
    print("mean loss of every 200 steps:", " ".join(f"{loss:.4f}" for loss in losses))
    print(f"{args.out}: {args.prediction} loss {losses[-1]:.4f}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
