"""Draws the pictures of docs/paths-and-couplings.md and prints its numbers, in under a minute.

Nothing is trained: the preset's eight Gaussians have exact marginals and velocities on every path.

    python scripts/draw_paths.py
"""

import argparse
import io
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from pathlib import Path
from typing import get_args

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.distributions import Independent as Joint

from fmcore.analytic import mixture_field, sample_mixture
from fmcore.flow import rng
from fmcore.flow.couplings import Independent, MinibatchOT
from fmcore.flow.fields import Convention, reparametrised
from fmcore.flow.paths import VE, ContinuousPath, half_log_snr
from fmcore.flow.times import GRIDS, uniform_grid
from fmcore.ode.sampling import optimised_grid
from fmcore.ode.solvers import SOLVERS, integrate, steps_for, trajectory
from fmcore.score.straightness import transport_cost

OUT = Path("docs/pictures")
PATHS: tuple[ContinuousPath, ...] = tuple(kind() for kind in get_args(ContinuousPath))
COLOURS = ("#1f5fbf", "#d1495b", "#2e8b57", "#8f5bb5", "#c98a1b")
INK, PALE = "#333333", "#8f9bab"
SIZE = 4.6  # half the side of a panel that holds the data
FINE = 200  # steps of rk4 that stand for an exact trajectory
TRACED, SHOWN, BATCH, BATCHES = 60, 200, 256, 20


def eight_gaussians() -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and standard deviations of `fmcore.intake.points.EightGaussians`."""
    angle = torch.arange(8, dtype=torch.float64) * (pi / 4)
    means = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.full((8,), 1 / 8, dtype=torch.float64), means, torch.full((8,), 0.2, dtype=torch.float64)


WEIGHTS, MEANS, STDS = eight_gaussians()


def density(path: ContinuousPath, t: Tensor, x: Tensor) -> Tensor:
    """The marginal density at time t () of the points x (..., 2)."""
    a, s, _, _ = path(t)
    spread = (s**2 + a**2 * STDS**2).sqrt()[:, None].expand_as(MEANS)
    return MixtureSameFamily(Categorical(WEIGHTS), Joint(Normal(a * MEANS, spread), 1)).log_prob(x).exp()


def own_times(path: ContinuousPath, steps: int) -> Tensor:
    """A uniform grid over the times at which the path's velocity is finite; `polynomial` starts at rest, at 0."""
    return path.span[1] * uniform_grid(steps)


def own_start(path: ContinuousPath, x0: Tensor) -> Tensor:
    """Standard normal noise at the scale of the path's first marginal, as `reparametrised` scales it."""
    a, s, _, _ = path(torch.zeros((), dtype=x0.dtype))
    return x0 * (a**2 + s**2).sqrt()


@dataclass(frozen=True)
class Traces:
    """Points (K, N, 2) at times (K,) on a path, and the ends (N, 2) of its field on the linear path."""

    times: Tensor
    points: Tensor
    linear_end: Tensor


def traces(path: ContinuousPath, x0: Tensor) -> Traces:
    """Exact trajectories of the path's field from the noise x0."""
    field, times = mixture_field(WEIGHTS, MEANS, STDS, path), own_times(path, FINE)
    points = torch.stack(list(trajectory(field, own_start(path, x0), times, SOLVERS["rk4"])))
    linear = reparametrised(field, Convention(path))
    return Traces(times, points, integrate(linear, x0, uniform_grid(FINE), SOLVERS["rk4"]))


# --- pictures ---------------------------------------------------------------------------------------------


def save(figure: Figure, name: str) -> None:
    """Writes a figure as PNG, with nothing in it that changes between runs."""
    OUT.mkdir(parents=True, exist_ok=True)
    path, drawn = OUT / f"{name}.png", io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    # A palette: a third of the bytes, and no difference to be seen.
    Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def square(axes: Axes, half: float) -> None:
    """A plane around the origin, without ticks."""
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])


def draw_marginals() -> None:
    """A row for each path: its marginals at five times."""
    times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    figure = Figure(figsize=(10, 9.3), layout="constrained")
    grid = figure.subplots(len(PATHS), len(times))
    image, colours = None, colormaps["Blues"].resampled(64)
    for index, (row, path) in enumerate(zip(grid, PATHS, strict=True)):
        for axes, t in zip(row, times, strict=True):
            a, s, _, _ = path(t)
            half = SIZE if not isinstance(path, VE) else max(SIZE, 4 + 3 * s.item())
            side = torch.linspace(-half, half, 181, dtype=torch.float64)
            x = torch.stack(torch.meshgrid(side, side, indexing="xy"), 2)
            image = axes.imshow(
                (half / SIZE) ** 2 * density(path, t, x).numpy(),
                origin="lower",
                extent=(-half, half, -half, half),
                norm=PowerNorm(0.5, 0, 0.5),
                cmap=colours,
            )
            square(axes, half)
            note = f"a = {a:.2g}, s = {s if s > 1e-9 else 0:.2g}" + (
                f"\nside {2 * half:.0f}" if half > SIZE else ""
            )
            axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=8, color=INK)
            if not index:
                axes.set_title(f"t = {t:g}", fontsize=11)
        row[0].set_ylabel(path.name, fontsize=11)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.35, aspect=25, pad=0.015)
    bar.set_label("density; in wider panels, as if shrunk to the others' size", fontsize=9)
    save(figure, "paths-marginals")


def draw_trajectories(traced: Mapping[str, Traces]) -> None:
    """A column for each path: above the plane, below one coordinate against time."""
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    grid = figure.subplots(2, len(traced), height_ratios=(1, 1.05))
    goal = traced["linear"].points[-1]
    for column, (colour, (name, trace)) in enumerate(zip(COLOURS, traced.items(), strict=True)):
        plane, clock = grid[:, column]
        wide = trace.points[0].abs().max().item() > 2 * SIZE
        half = 1.05 * trace.points[0].abs().max().item() if wide else SIZE
        views = [(plane, half)]
        if wide:
            inset = plane.inset_axes((0.5, 0.0, 0.5, 0.5))
            inset.set_facecolor("white")
            views.append((inset, SIZE))
            plane.text(0.03, 0.97, f"side {2 * half:.0f}", transform=plane.transAxes, va="top", fontsize=8)
            inset.text(
                0.5, 0.5, f"{2 * SIZE:.1f}", transform=inset.transAxes, ha="center", va="center", fontsize=8
            )
        for axes, size in views:
            axes.plot(trace.points[:, :, 0], trace.points[:, :, 1], color=colour, linewidth=0.6, alpha=0.75)
            axes.scatter(*trace.points[0].T, s=3, color=INK, linewidths=0, zorder=3)
            if size == SIZE:
                axes.scatter(*goal.T, s=16, facecolors="none", edgecolors=INK, linewidths=0.6, zorder=3)
            square(axes, size)
        plane.set_title(name, fontsize=11)
        clock.plot(trace.times, trace.points[:, :, 0], color=colour, linewidth=0.6, alpha=0.75)
        clock.set(xlim=(0, 1), xticks=[0, 0.5, 1], ylim=(-SIZE, SIZE), yticks=[-3, 0, 3])
        if wide:
            clock.set_yscale("symlog", linthresh=SIZE)
            clock.set(ylim=(-half, half), yticks=[-100, -10, -3, 0, 3, 10, 100])
            clock.set_yticklabels(["-100", "-10", "-3", "0", "3", "10", "100"])
            clock.minorticks_off()
        clock.set_xticklabels(["0", "0.5", "1"])
        clock.tick_params(labelsize=8)
        clock.set_xlabel("t", fontsize=9)
    grid[0, 0].set_ylabel("the plane", fontsize=9)
    grid[1, 0].set_ylabel("first coordinate", fontsize=9)
    save(figure, "paths-trajectories")


def draw_coefficients() -> None:
    """a, s and log(a / s) of every path."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    for colour, path in zip(COLOURS, PATHS, strict=True):
        a, s, _, _ = path(t)
        dash = "--" if path.name == "polynomial" else "-"
        for axes, value in ((left, a), (middle, s), (right, half_log_snr(path, t))):
            axes.plot(t, value, color=colour, linestyle=dash, label=path.name)
    left.set(title="a, the scale of data", ylim=(-0.03, 1.06))
    middle.set(title="s, the scale of noise", yscale="log", ylim=(0.005, 90))
    middle.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    right.set(title="log(a / s), half the log signal-to-noise", ylim=(-8, 8))
    for axes in (left, middle, right):
        axes.set(xlabel="t", xlim=(0, 1))
        axes.title.set_fontsize(11)
        axes.tick_params(labelsize=9)
        axes.grid(alpha=0.3)
    left.legend(fontsize=9)
    save(figure, "paths-coefficients")


def draw_couplings(x0: Tensor) -> None:
    """Independent pairs, minibatch OT, the exact flow's trajectories, and the coupling they induce."""
    field = mixture_field(WEIGHTS, MEANS, STDS)
    x1 = sample_mixture(WEIGHTS, MEANS, STDS, 20_000, rng.generator(0, "pictures/data"))
    fresh = Independent(x1)
    drawn = {}
    for name, coupling in (("independent", fresh), ("minibatch OT, 256 a batch", MinibatchOT(fresh))):
        batches = [coupling(BATCH, rng.generator(0, "pictures/couplings", i)) for i in range(BATCHES)]
        drawn[name] = torch.cat([torch.stack(pairs[:2]) for pairs in batches], 1)
    walk = torch.stack(list(trajectory(field, x0, uniform_grid(FINE), SOLVERS["rk4"])))
    drawn["the flow's trajectories"] = walk
    drawn["the pairs it induces"] = walk[[0, -1]]
    figure = Figure(figsize=(11, 3.25), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        cost = transport_cost(points[0], points[-1]).mean().item()
        shown = points[:, :SHOWN]
        axes.plot(shown[:, :, 0], shown[:, :, 1], color=PALE, linewidth=0.5, alpha=0.8)
        axes.scatter(*shown[0].T, s=5, color=INK, linewidths=0, zorder=3, label="noise")
        axes.scatter(*shown[-1].T, s=5, color=COLOURS[0], linewidths=0, zorder=3, label="data")
        square(axes, SIZE)
        axes.set_title(f"{name}\ntransport cost {cost:.2f}", fontsize=10)
        print(f"transport cost, {name}: {cost:.3f} ({points.shape[1]} pairs)")
    figure.axes[0].legend(fontsize=8, loc="lower left", handletextpad=0.1, borderpad=0.3)
    save(figure, "couplings-pairs")


def draw_grids(x0: Tensor, steps: int = 8) -> None:
    """The knots of every grid, with the error of Euler's end on it."""
    field = mixture_field(WEIGHTS, MEANS, STDS)
    end = integrate(field, x0, uniform_grid(FINE), SOLVERS["rk4"])
    grids = {name: kind()(steps) for name, kind in GRIDS.items()}
    grids["optimised"] = optimised_grid(field, x0[:64], steps, SOLVERS["euler"])
    figure = Figure(figsize=(10, 2.5), layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for line, (name, knots) in enumerate(grids.items()):
        error = (integrate(field, x0, knots, SOLVERS["euler"]) - end).norm(dim=1).mean().item()
        colour = COLOURS[line % len(COLOURS)]
        axes.hlines(-line, 0, 1, color=PALE, linewidth=0.8)
        axes.plot(knots, [-line] * len(knots), "|", color=colour, markersize=15, markeredgewidth=2)
        lines.append(f"{name}: {error:.3f}")
        print(f"Euler, {steps} steps, {name:9} mean distance to the exact end {error:.3f};", end=" ")
        print("knots", " ".join(f"{t:.3f}" for t in knots))
    axes.set_yticks([-line for line in range(len(lines))], lines, fontsize=10)
    axes.set(xlim=(-0.01, 1.01), ylim=(0.6 - len(lines), 0.5), xlabel="t (noise at 0, data at 1)")
    axes.set_title(f"{steps} steps of Euler: mean distance to the exact end", fontsize=11)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save(figure, "grids")


# --- numbers ----------------------------------------------------------------------------------------------


def print_ends(traced: Mapping[str, Traces]) -> None:
    """How far the ends of each path lie from those of the linear path."""
    goal = traced["linear"].points[-1]
    for name, trace in traced.items():
        own, linear = ((end - goal).norm(dim=1) for end in (trace.points[-1], trace.linear_end))
        print(
            f"{name:10} ends from those of linear, its own field: median {own.median():.4f}, most {own.max():.4f};"
            f" carried to the linear path: {linear.median():.4f}, {linear.max():.4f}"
        )


def print_solvers(x0: Tensor, nfes: tuple[int, ...] = (4, 8, 16, 32, 64)) -> None:
    """The error of the end for every deterministic solver at equal NFE."""
    field = mixture_field(WEIGHTS, MEANS, STDS)
    end = integrate(field, x0, uniform_grid(FINE), SOLVERS["rk4"])
    print("mean distance to the exact end at NFE", *nfes)
    for name, solver in SOLVERS.items():
        if not solver.stochastic:
            ends = (integrate(field, x0, uniform_grid(steps_for(solver, nfe)), solver) for nfe in nfes)
            print(f"{name:15}", " ".join(f"{(x - end).norm(dim=1).mean():.4f}" for x in ends))


def main() -> None:
    """Draws all pictures and prints all numbers."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/paths-and-couplings.md.")
    parser.parse_args()
    torch.set_num_threads(1)
    x0 = rng.noise(0, "pictures", 0, BATCH * BATCHES, (2,)).double()
    traced = {path.name: traces(path, x0[:TRACED]) for path in PATHS}
    draw_marginals()
    draw_trajectories(traced)
    draw_coefficients()
    draw_couplings(x0)
    draw_grids(x0[:1000])
    print_ends(traced)
    print_solvers(x0[:1000])


if __name__ == "__main__":
    main()
