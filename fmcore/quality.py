"""What stored pairs look like: is their noise still noise, how far do they travel, are all classes there.

Reflow trains on nothing else, so a fault here (noise of a diverging inversion, a lost class, a swapped tensor)
becomes the model's, and is far cheaper to see in a table than in samples a day later.
"""

from collections.abc import Iterable
from math import prod, sqrt

import torch
from torch import Tensor

from fmcore.couplings import Pairs

FAR = 6.0  # standard errors from what N(0, I) gives, beyond which noise is called suspicious


def pair_quality(batches: Iterable[Pairs], num_classes: int | None = None) -> dict[str, float]:
    """Moments of x_0, quantiles of |x_1 - x_0|^2 (mean over dimensions) and class shares, in one pass.

    Returns:
        `x0_mean` (0 for noise), `x0_square` (1), `x0_fourth` (3) and `x0_neighbours` (the mean product of values
        side by side, 0; absent where there is one value only), each as it was found, and as `..._sigmas` in
        standard errors from what N(0, I) gives; `cost`, `cost_05`, `cost_50`, `cost_95`, `cost_max`; `class_least`
        and `class_most`, the rarest and commonest class's share times the number of classes (1 is balance).
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    costs: list[Tensor] = []
    classes = torch.zeros(num_classes or 0, dtype=torch.int64)
    for x0, x1, label in batches:
        z = x0.double()
        found = {"mean": z, "square": z.square(), "fourth": z**4}
        if z.shape[-1] > 1:
            found["neighbours"] = z[..., 1:] * z[..., :-1]
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value.sum())
            counts[name] = counts.get(name, 0) + prod(value.shape)
        costs.append((x1.double() - z).flatten(1).square().mean(1).cpu())
        if label is not None and num_classes:
            classes += label.cpu().bincount(minlength=num_classes)
    out: dict[str, float] = {}
    expected = {"mean": (0.0, 1.0), "square": (1.0, 2.0), "fourth": (3.0, 96.0), "neighbours": (0.0, 1.0)}
    for name, total in sums.items():
        mean, variance = expected[name]
        out[f"x0_{name}"] = total / counts[name]
        out[f"x0_{name}_sigmas"] = (total / counts[name] - mean) / sqrt(variance / counts[name])
    cost = torch.cat(costs)
    out["cost"], out["cost_max"] = float(cost.mean()), float(cost.max())
    ordered = cost.sort().values
    for share in (5, 50, 95):
        out[f"cost_{share:02d}"] = float(ordered[round(share / 100 * (len(ordered) - 1))])
    if num_classes and int(classes.sum()):
        shares = classes.double() / classes.sum() * num_classes
        out["class_least"], out["class_most"] = float(shares.min()), float(shares.max())
    return out


def suspicions(quality: dict[str, float]) -> list[str]:
    """One line for each way in which x_0 is not N(0, I), or a class is missing."""
    lines = []
    for key, value in quality.items():
        name = key.removesuffix("_sigmas")
        if name != key and not abs(value) < FAR:
            lines.append(f"{name} is {quality[name]:.3g}, {value:+.0f} standard errors from that of noise")
    if quality.get("class_least") == 0:
        lines.append("a class has no pairs")
    return lines
