"""Endings: how students are trained."""

import pytest
import torch

from fmcore.endings import ENDINGS
from fmcore.endings.regression import Regression
from fmcore.flow.couplings import Pairs, Stored
from fmcore.flow.fields import Convention
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR

pytestmark = pytest.mark.numerics


class Still(torch.nn.Module):
    """A network whose velocity is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.v = torch.nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x, t, label):
        return self.v.expand(len(x), 2)


@pytest.mark.parametrize("k", [1, 2])
def test_regression_is_flow_matching_on_its_times(k):
    stored = Stored(Pairs(torch.randn(30, 2), torch.randn(30, 2), None))
    objective = Regression(k, Squared()).objective(
        stored, batch_size=60, precision="fp32", convention=Convention(LINEAR)
    )
    pairs, t = objective.draw(torch.Generator().manual_seed(0), 0.9)
    assert set(t.tolist()) == {i / k for i in range(k)}
    loss = objective.loss(Still(), (pairs, t))
    torch.testing.assert_close(loss, (Still().v - (pairs.x1 - pairs.x0)).square().mean(1))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="regression needs k >= 1, got 0"):
        Regression(0, Squared())


def test_endings_are_found_by_their_names():
    assert {name: kind.__dataclass_fields__["name"].default for name, kind in ENDINGS.items()} == {
        "regression": "regression",
        "matched": "matched",
    }
