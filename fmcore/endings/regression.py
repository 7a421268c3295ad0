"""The k-step student: it learns the velocities at the starts of k Euler steps, and at no other times."""

from dataclasses import dataclass
from typing import Literal

from fmcore.flow.couplings import Coupling
from fmcore.flow.fields import Convention
from fmcore.flow.losses import Distance
from fmcore.flow.paths import LINEAR
from fmcore.flow.times import KGrid
from fmcore.flow.training import Objective, flow_objective


@dataclass(frozen=True)
class Regression:
    """Flow matching at the times 0, 1/k, ..., (k-1)/k only (k-step distillation, Liu et al., arXiv:2209.03003).

    Main arguments:
        k: steps of the student, which may also take a number of Euler steps that divides k.
        distance: between velocities.
    """

    k: int
    distance: Distance
    name: Literal["regression"] = "regression"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"regression needs k >= 1, got {self.k}")

    @property
    def passes(self) -> float:
        """Evaluations of a network that training takes for each image, in the mean."""
        return 1.0

    def objective(
        self, coupling: Coupling, *, batch_size: int, precision: str, convention: Convention
    ) -> Objective:
        """The student's objective."""
        return flow_objective(
            coupling,
            LINEAR,
            KGrid(self.k),
            self.distance,
            batch_size=batch_size,
            precision=precision,
            convention=convention,
        )
