"""The k-step student: it learns where each of k Euler steps of its own has to end, and knows no other times."""

from dataclasses import dataclass

from fmcore.endings.match import Matching, matching_objective
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
        match: how its samples are drawn to the data's distribution as well, None for not at all.
    """

    k: int
    distance: Distance
    match: Matching | None = None

    def objective(
        self, coupling: Coupling, real: Coupling | None, *, batch_size: int, precision: str, convention: Convention
    ) -> Objective:
        """What the student is trained on; `real` are the data, for an ending that matches them.

        Raises:
            ValueError: if data are to be matched and there are none.
        """
        options = {"batch_size": batch_size, "precision": precision, "convention": convention}
        if self.match is None:
            return flow_objective(coupling, LINEAR, KGrid(self.k), self.distance, **options)  # type: ignore[arg-type]
        if real is None:
            raise ValueError("matching needs real data")
        return matching_objective(coupling, real, KGrid(self.k), self.distance, self.match, **options)  # type: ignore[arg-type]
