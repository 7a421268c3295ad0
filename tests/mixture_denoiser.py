"""A mixture of two normal distributions in the plane, and what a denoiser of it should say."""

import torch

WEIGHT = torch.tensor([0.75, 0.25], dtype=torch.float64)
MEAN = torch.tensor([[3.0, 1.0], [-1.0, 2.0]], dtype=torch.float64)
STD = torch.tensor([0.3, 0.6], dtype=torch.float64)


def posterior_data(x, sigma):
    """E[x_1 | x_1 + sigma n = x] of the mixture, for points (B, 2) and sigma (B, 1), by Bayes' rule."""
    variance = STD**2 + sigma**2
    gap = x[:, None, :] - MEAN
    posterior = torch.softmax(WEIGHT.log() - variance.log() - gap.square().sum(2) / (2 * variance), 1)
    means = MEAN + (STD**2 / variance)[:, :, None] * gap
    return (posterior[:, :, None] * means).sum(1)
