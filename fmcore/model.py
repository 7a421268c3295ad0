"""What `fmcore.load` returns: a model from its folder, which samples."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fmcore.flow import rng
from fmcore.flow.couplings import Pairs, joined
from fmcore.flow.speed import moved
from fmcore.flow.times import UniformGrid
from fmcore.models.autoencoder import Decoder, beside, decoder_of
from fmcore.models.folder import Trained, load_model, save_model
from fmcore.ode.reflow import draw, generate_pairs
from fmcore.ode.sampling import Sampling
from fmcore.ode.solvers import SOLVERS, seeded, solve

SAMPLE_BATCH, SAMPLE_NUMBERS = 1000, 2**20  # drawn together: samples at most, and numbers in them


@dataclass(frozen=True)
class Model(Trained):
    """A loaded model that samples; what describes it stands in `Trained`.

    Main arguments:
        decoder: makes images of what the network makes, if that is latents.
    """

    decoder: Decoder | None = None

    def sample(
        self,
        count: int,
        sampling: Sampling | int,
        *,
        seed: int = 0,
        label: int | str | None = None,
        precision: str = "auto",
    ) -> Tensor:
        """Draws samples; sample i depends on (seed, i) alone.

        Main arguments:
            count: samples wanted.
            sampling: how, or a number of Euler steps.
            label: the class of all samples, a number or a name; None draws them uniformly for a conditional model.

        Returns:
            (count, *sample_shape) on the CPU: images in [-1, 1] up to the model's error, or what else the data is,
            in its own units.

        Raises:
            ValueError: if the solver is unknown or cannot spend the evaluations, if the model does not know the
                steps, or if the label is out of range.
        """
        x1 = torch.cat(list(self.batches(count, sampling, seed=seed, label=label, precision=precision)))
        return x1 if self.units is None else self.units.restored(x1)

    def carry(
        self,
        x0: Float[Tensor, "N *D"],
        sampling: Sampling | int,
        *,
        label: Int64[Tensor, " N"] | None = None,
        precision: str = "auto",
    ) -> Float[Tensor, "N *D"]:
        """The samples that given noise, or samples of another source, are carried to; the rest as in `sample`."""
        how = Sampling(nfe=sampling) if isinstance(sampling, int) else sampling
        self.check_steps(how)
        field, knots, done = self.field(precision, how.guidance), how.knots(), []
        for first in range(0, len(x0), self.batch):
            part = slice(first, first + self.batch)
            of = None if label is None else moved(label[part], self.device)
            x1 = solve(field, moved(x0[part], self.device), knots, seeded(how.method, 0, first), of)
            done.append((x1 if self.decoder is None else self.decoder(x1, precision)).cpu())
        found = torch.cat(done)
        return found if self.units is None else self.units.restored(found)

    def pairs(
        self,
        count: int,
        sampling: Sampling | int,
        *,
        seed: int = 0,
        labels: Int64[Tensor, " N"] | None = None,
        precision: str = "auto",
    ) -> Pairs:
        """Noise and the samples it is carried to, to train a rectified flow on (`fmcore.fit`).

        Main arguments:
            labels: for a conditional model, classes that those of the pairs are drawn from; None for all alike.

        Raises:
            ValueError: as `sample`, and if the solver is stochastic.
        """
        self._need_noise()
        how = Sampling(nfe=sampling) if isinstance(sampling, int) else sampling
        self.check_steps(how)
        if labels is None and self.num_classes is not None:
            labels = torch.arange(self.num_classes)
        made = generate_pairs(
            self.field(precision, how.guidance),
            count,
            shape=self.shape,
            seed=seed,
            grid=how.knots(),
            solver=how.method,
            batch=min(self.batch, count),
            labels=labels,
            device=self.device,
        )
        return joined(list(made))

    def save(self, folder: str | Path) -> None:
        """Writes the model's folder, which `load` reads; an `ArtifactError` for weights that are not finite."""
        save_model(
            Path(folder),
            self.network,
            network_config=self.network_config,
            shape=self.shape,
            num_classes=self.num_classes,
            manifest=self.manifest,
            convention=self.convention,
            null_label=self.null_label,
            class_names=self.class_names,
            units=self.units,
            encoding=self.encoding,
        )

    def _need_noise(self) -> None:
        if self.manifest.get("source", "noise") != "noise":
            raise ValueError("this model starts from samples, not from noise: carry(x0, ...) takes them")

    def batches(
        self,
        count: int,
        sampling: Sampling | int,
        *,
        seed: int = 0,
        label: int | str | None = None,
        precision: str = "auto",
        purpose: str = "sample",
        start: int = 0,
        pool: Int64[Tensor, " N"] | None = None,
    ) -> Iterator[Tensor]:
        """What `sample` returns, but standardised as the data was, `batch` at a time, from sample `start` on.

        `purpose` names the noise, `evaluate` that of the scores. If there is a `pool` of classes they are drawn
        from it, so each as often as it is there; the scores draw from the data's.
        """
        self._need_noise()
        how = Sampling(nfe=sampling) if isinstance(sampling, int) else sampling
        self._check_label(label)
        self.check_steps(how)
        field, knots = self.field(precision, how.guidance), how.knots()
        for first in range(start, count, self.batch):
            size = min(self.batch, count - first)
            x0, drawn = draw(first, size, shape=self.shape, seed=seed, purpose=purpose, labels=pool)
            part = self._labels(first, size, seed, label) if pool is None else drawn
            part = None if part is None else moved(part, self.device)
            x1 = solve(field, moved(x0, self.device), knots, seeded(how.method, seed, first), part)
            yield (x1 if self.decoder is None else self.decoder(x1, precision)).cpu()

    @property
    def batch(self) -> int:
        """Samples that are drawn together: fewer where they are large, so that memory stays bounded."""
        return max(1, min(SAMPLE_BATCH, SAMPLE_NUMBERS // prod(self.shape)))

    def check_steps(self, how: Sampling) -> None:
        """A ValueError for steps that this model does not know, or that cannot spend the evaluations."""
        _ = how.steps
        euler = how.method is SOLVERS["euler"] and how.grid == UniformGrid()
        if self.k is not None and (not euler or how.nfe < 1 or self.k % how.nfe):
            raise ValueError(
                f"this model was distilled for {self.k} Euler steps: expected euler and an nfe that divides "
                f"{self.k}, got {how.solver} and {how.nfe}"
            )

    def label_of(self, name: str) -> int:
        """The number of the class of that name; a ValueError if there is none."""
        names = self.class_names or ()
        if name in names:
            return names.index(name)
        offered = f"one of {', '.join(names)}" if names else "a number, since this model's classes have no names"
        raise ValueError(f"label: expected {offered}, got {name!r}")

    def _check_label(self, label: int | str | None) -> None:
        """A ValueError for a class that the model does not know."""
        if label is None:
            return
        if self.num_classes is None:
            raise ValueError(f"label {label} was asked for, but this model was trained without classes")
        number = self.label_of(label) if isinstance(label, str) else label
        if not 0 <= number < self.num_classes:
            raise ValueError(f"label must lie in 0..{self.num_classes - 1}, got {number}")

    def _labels(
        self, first: int, count: int, seed: int, label: int | str | None
    ) -> Int64[Tensor, " count"] | None:
        if self.num_classes is None:
            return None
        if label is None:
            return rng.integers(seed, "sample/label", first, count, self.num_classes)
        return torch.full((count,), self.label_of(label) if isinstance(label, str) else label)


def load(
    folder: str | Path,
    device: torch.device | str = "cpu",
    *,
    ema: float | None = None,
    autoencoder: str | Path | None = None,
    network: nn.Module | None = None,
) -> Model:
    """Loads a model folder; arguments and errors are those of `fmcore.models.folder.load_model`.

    Main arguments:
        autoencoder: for a model that makes latents, the folder of the autoencoder that decodes them. None looks in
            the folder `autoencoder` of the model, then in `dataset/` of the project that the model lies in.

    Raises:
        ValueError: if an autoencoder is named that the model does not need.
        ArtifactError: if the one it needs is not found.
    """
    trained = load_model(folder, device, ema=ema, network=network)
    described = {field.name: getattr(trained, field.name) for field in fields(trained)}
    if trained.encoding is None:
        if autoencoder is not None:
            raise ValueError(f"autoencoder: {folder} makes its samples itself; expected none, got {autoencoder}")
        return Model(**described)
    places = beside(folder) if autoencoder is None else [Path(autoencoder)]
    return Model(**described, decoder=decoder_of(trained.encoding, places, device))
