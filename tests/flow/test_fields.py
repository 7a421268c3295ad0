"""Fields made from networks of any convention, and from other paths, against exact ones."""

from math import exp

import pytest
import torch
from flow_matching.path.scheduler import (
    CondOTScheduler,
    CosineScheduler,
    PolynomialConvexScheduler,
    ScheduleTransformedModel,
    VPScheduler,
)
from flow_matching.utils import ModelWrapper
from torch import nn

from fmcore.analytic import mixture_field
from fmcore.flow.fields import OURS, PRECISIONS, Convention, autocast_dtype, network_field, reparametrised
from fmcore.flow.paths import PREDICTIONS, VE, VP, Cosine, Linear, Polynomial, coefficients, convert, interpolate
from fmcore.flow.times import uniform_grid
from fmcore.ode.solvers import SOLVERS, integrate
from path_examples import (
    DEFAULTS,
    EXAMPLES,
    MIXTURES,
    between,
    each_path,
    f64,
    gen,
    levels,
    naming,
    noise,
    on_path,
)

pytestmark = pytest.mark.numerics

STEPS = 24
CPU = torch.device("cpu")

each_default = pytest.mark.parametrize("path", DEFAULTS, ids=naming)


def rk4(field, x0):
    return integrate(field, x0, uniform_grid(STEPS), SOLVERS["rk4"])


def reach(path, spread):
    """How far the ends of reparametrised flows may lie apart; `spread` is the sharpest mode's standard deviation.

    With r = a / s at the start of the path's span, E[x_1 | x] is wrong by at most r Var(x_1) |x| <= 5 r before the
    target's level is r, that is for a time r (or, if that is less, in the first stage of the solver, with weight
    h / 6). With r = s / a at its end, noise that is left moves points by r^2 |score| <= r^2 (3.5 / spread).
    """
    low, high = (exp(-abs(level)) for level in levels(path))
    stage = 1 / STEPS / 6
    return 5 * low * (low + stage) + 3.5 / spread * high * (high + stage) + 1e-9


# Reparametrisation


@each_path
@pytest.mark.parametrize("target", [Linear(), Cosine()], ids=naming)
def test_every_path_is_the_same_flow(path, target):
    """The mixture's field on a path, seen from another, carries the same noise to the same data."""
    x0 = noise(32, 2)
    converted = reparametrised(mixture_field(*MIXTURES[2], path), Convention(path), target)
    end = rk4(mixture_field(*MIXTURES[2], target), x0)
    assert (rk4(converted, x0) - end).abs().max() <= reach(path, spread=0.4)
    assert (end - x0).abs().max() > 1


def test_that_flow_is_the_same_by_the_clock_of_either_target():
    x0 = noise(8, 2)
    linear, cosine = (
        integrate(mixture_field(*MIXTURES[2], path), x0, uniform_grid(256), SOLVERS["rk4"])
        for path in (Linear(), Cosine())
    )
    torch.testing.assert_close(linear, cosine, rtol=0, atol=1e-8)


def test_what_the_same_flow_costs():
    """The bounds of the tests above in numbers: exact, a diffusion's noise floor, smeared data."""
    assert reach(Linear(), 0.4) < 1e-8
    assert reach(Cosine(), 0.4) < 1e-8
    assert reach(Polynomial(), 0.4) < 1e-3  # its span begins where a is 0.01
    assert reach(VP(), 0.4) < 1e-3
    assert reach(VE(), 0.4) < 5e-3
    assert 0.05 < reach(Linear(sigma_min=0.1), 0.4) < 0.2


def test_a_path_that_keeps_noise_smears_the_data():
    """sigma_min of 0.1 never sees data sharper than that: it misses width 0.3 by a share of (0.1 / 0.3)^2 / 2."""
    to_one = (f64(1.0), f64(0.0)[:, None], f64(0.3))
    x0 = f64(-2.0, -1.0, 1.0, 2.0)[:, None]
    widths = {
        path: rk4(reparametrised(mixture_field(*to_one, path), Convention(path)), x0) / x0
        for path in (Linear(), Linear(sigma_min=0.01), Linear(sigma_min=0.1))
    }
    misses = [float((width - 0.3).abs().max()) / 0.3 for width in widths.values()]
    assert misses[0] < 1e-4
    assert misses[1] < 0.01
    assert 0.01 < misses[2] < 0.1


@each_path
@pytest.mark.parametrize("target", [Linear(), Cosine(), VP(), VE()], ids=naming)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_field_of_any_convention_gives_the_velocity(path, target, kind):
    """What a perfect network of that path and kind says, as the target's velocity, is the target's exact one."""
    (low, high), (bottom, top) = levels(path, 3.0), levels(target, 3.0)
    low, high = max(low, bottom), min(high, top)
    t = target.time_at(low + (high - low) * torch.linspace(0.01, 0.99, 40, dtype=torch.float64))
    x, _ = on_path(target, 2, t)

    def predicts(x, t, label):
        v = mixture_field(*MIXTURES[2], path)(x, t, None)
        return convert(path, x, t, v, source="velocity", target=kind)

    found = reparametrised(predicts, Convention(path, kind), target)(x, t, None)
    exact = mixture_field(*MIXTURES[2], target)(x, t, None)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-7)


MEAN, STD = 3.0, 0.5


def posterior(path, kind):
    """What to predict on the way from N(0, 1) to N(3, 0.25), written from the regression of x_0 and x_1 on x_t."""

    def field(x, t, label):
        a, s, da, ds = coefficients(path, t, x)
        gap = (x - a * MEAN) / (s**2 + a**2 * STD**2)
        x0, x1 = s * gap, MEAN + a * STD**2 * gap
        return {"velocity": da * x1 + ds * x0, "noise": x0, "data": x1, "score": -gap, "v": a * x0 - s * x1}[kind]

    return field


@each_default
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_time_runs_from_noise_to_data(path, kind):
    """Whatever is predicted on whatever path: half way up at t = 1/2, at +3 at the end, and back."""
    field = reparametrised(posterior(path, kind), Convention(path, kind))
    x0 = f64(-2.0, -1.0, 0.0, 1.0, 2.0)[:, None]
    grid = uniform_grid(STEPS)
    half = grid[: STEPS // 2 + 1]
    middle = integrate(field, x0, half, SOLVERS["rk4"])
    end = integrate(field, middle, grid[STEPS // 2 :], SOLVERS["rk4"])
    near = reach(path, STD) + 1e-4
    assert (middle - (MEAN / 2 + (0.25 + 0.25 * STD**2) ** 0.5 * x0)).abs().max() < near
    assert (end - (MEAN + STD * x0)).abs().max() < near
    assert end.mean().item() == pytest.approx(MEAN, abs=near)
    assert (integrate(field, middle, half.flip(0), SOLVERS["rk4"]) - x0).abs().max() < 2 * near


@each_default
def test_time_and_sign_cannot_be_mistaken(path):
    """A field that mistakes either does not arrive: the test above can fail."""
    x0 = f64(-2.0, -1.0, 0.0, 1.0, 2.0)[:, None]
    low, high = path.span

    def late(x, t, label):
        return posterior(path, "data")(x, low + high - t, label)

    def downwards(x, t, label):
        return -posterior(path, "velocity")(x, t, label)

    def upside_down(x, t, label):
        return -posterior(path, "noise")(x, t, label)

    for wrong, kind in ((late, "data"), (downwards, "velocity"), (upside_down, "noise")):
        end = integrate(reparametrised(wrong, Convention(path, kind)), x0, uniform_grid(16) * 0.9, SOLVERS["rk4"])
        assert not (end - (0.9 * MEAN + (0.01 + 0.81 * STD**2) ** 0.5 * x0)).abs().max() < 0.1


@each_path
def test_beyond_the_span_the_nearest_level_counts(path):
    """At both ends of time a field is asked inside its span only, and answers with finite velocities."""
    asked = []

    def field(x, t, label):
        asked.extend(t.tolist())
        return mixture_field(*MIXTURES[2], path)(x, t, None)

    x = noise(4, 2)
    v = reparametrised(field, Convention(path), Cosine() if path == Linear() else Linear())(
        x, f64(0.0, 1e-12, 1 - 1e-12, 1.0), None
    )
    assert v.isfinite().all()
    assert path.span[0] <= min(asked) <= max(asked) <= path.span[1]
    means = MIXTURES[2][0] @ MIXTURES[2][1]
    low = exp(levels(path)[0])
    assert (
        path == Linear() or (v[:2] - (means - x[:2])).abs().max() < 5 * low + 1e-6
    )  # noise tells nothing of data


def test_its_own_convention_is_left_alone():
    field = mixture_field(*MIXTURES[2], VP())
    assert reparametrised(field, Convention(VP()), VP()) is field
    assert reparametrised(field, Convention()) is field
    assert Convention() == OURS == Convention(Linear(), "velocity")


def test_labels_pass_through():
    seen = []

    def field(x, t, label):
        seen.append(label)
        return x

    label = torch.tensor([1, 0])
    reparametrised(field, Convention(VP(), "noise"))(noise(2, 3), f64(0.2, 0.7), label)
    assert seen[0] is label


@each_path
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_in_float32_all_is_well_between_the_ends(path, kind):
    """Half the digits, away from the ends: where there is only noise, a noise or score leaves none for data."""
    t = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    low, high = levels(path)
    level = torch.logit(t)
    t = t[(level > low + 0.1) & (level < high - 0.1)]
    x, _ = interpolate(Linear(), noise(len(t), 1), MEAN + STD * noise(len(t), 1, 1), t)
    exact = reparametrised(posterior(path, kind), Convention(path, kind))(x, t, None)
    found = reparametrised(posterior(path, kind), Convention(path, kind))(x.float(), t.float(), None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=2e-4)


class Peer(ModelWrapper):
    def __init__(self, field):
        super().__init__(nn.Identity())
        self.field = field

    def forward(self, x, t, **extras):
        return self.field(x, t[:, 0], None)


SCHEDULERS = {
    Linear(): CondOTScheduler(),
    Polynomial(): PolynomialConvexScheduler(2.0),
    VP(): VPScheduler(),
    Cosine(): CosineScheduler(),
}


@pytest.mark.parametrize("source", SCHEDULERS, ids=naming)
@pytest.mark.parametrize("target", SCHEDULERS, ids=naming)
def test_reparametrisation_is_that_of_flow_matching(source, target):
    """Theirs divides by zero at both ends and knows no span; between them the formulas agree."""
    t = between(target, 60)
    x, _ = on_path(target, 2, t)
    field = mixture_field(*MIXTURES[2], source)
    peer = ScheduleTransformedModel(Peer(field), SCHEDULERS[source], SCHEDULERS[target])
    theirs = peer(x, t[:, None])
    torch.testing.assert_close(
        reparametrised(field, Convention(source), target)(x, t, None), theirs, rtol=1e-7, atol=1e-7
    )


# Networks


class Recorded(nn.Module):
    """A network that answers with `answer` and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.answer = answer
        self.asked = []

    def forward(self, x, t, label):
        self.asked.append((x, t, label))
        return self.answer(x, t, label)


@each_path
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_network_follows_its_convention(path, kind):
    """A network that answers rightly, in float32 and at the scale asked of it, is the exact field."""
    t = between(Linear(), 60)
    level = torch.logit(t)
    low, high = levels(path)
    t = t[(level > low + 0.1) & (level < high - 0.1)]
    x, _ = interpolate(Linear(), noise(len(t), 1), MEAN + STD * noise(len(t), 1, 1), t)
    scaled = path.normalised and kind == "velocity"

    def answer(x, t, label):
        x, t = x.double(), t.double()
        a, s, da, ds = coefficients(path, t, x)
        if not scaled:
            return posterior(path, kind)(x, t, None).float()
        size = (a**2 + s**2).sqrt()
        return (posterior(path, kind)(x * size, t, None) / (da**2 + ds**2).sqrt()).float()

    network = Recorded(answer)
    field = network_field(network, "fp32", Convention(path, kind))
    found = field(x, t, None)
    assert found.dtype == torch.float64
    assert {(a.dtype, b.dtype) for a, b, _ in network.asked} == {(torch.float32, torch.float32)}
    # Networks are given times in float32 whose last digit moves VE and tables by 1e-6 of a level
    exact = posterior(Linear(), "velocity")(x, t, None)
    torch.testing.assert_close(found, exact, rtol=2e-4, atol=5e-4)


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.normalised], ids=naming)
def test_networks_see_normalised_paths_at_unit_size(path):
    t = torch.linspace(0, 1, 4000, dtype=torch.float64)
    x, _ = on_path(path, 2, t)
    assert x.abs().max() > 100
    _, _, da, ds = coefficients(path, t, x)
    exact = mixture_field(*MIXTURES[2], path)(x, t, None) / (da**2 + ds**2).sqrt()
    network = Recorded(lambda x, t, label: exact.float())
    field = network_field(network, "fp32", Convention(path), path)
    v = field(x, t, None)
    torch.testing.assert_close(v, mixture_field(*MIXTURES[2], path)(x, t, None), rtol=1e-6, atol=1e-4)
    ((seen, _, _),) = network.asked
    for part in seen.chunk(8):  # noise first, data last
        assert 0.7 < part.square().mean().sqrt() < 1.5
    for part in exact.chunk(8)[:3]:
        assert 0.8 < part.square().mean().sqrt() < 1.1  # the noise itself, as long as it can be told from data
    assert exact.abs().max() < 6


def test_other_predictions_are_asked_at_the_points_themselves():
    x, t = 50 * noise(5, 2), f64(0.0, 0.1, 0.2, 0.3, 0.4)
    network = Recorded(lambda x, t, label: x)
    network_field(network, "fp32", Convention(VE(), "noise"), VE())(x, t, None)
    # VE to itself, but not of a velocity: the same point at the same time
    torch.testing.assert_close(network.asked[0][0], x.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.asked[0][1], t.float())


class Typed(nn.Module):
    """A linear layer that remembers in which dtype it answered."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, t, label):
        assert t.dtype == torch.float32
        y = self.linear(x)
        self.computed = y.dtype
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_stays_inside_the_network(dtype):
    torch.manual_seed(0)
    network = Typed()
    x, t = noise(4, 3).to(dtype), torch.rand(4, generator=gen()).to(dtype)
    exact = x.float() @ network.linear.weight.T + network.linear.bias
    for precision, computed, near in (("fp32", torch.float32, 1e-6), ("bf16", torch.bfloat16, 0.05)):
        v = network_field(network, precision)(x, t, None)
        assert v.dtype == dtype
        assert network.computed == computed
        assert (v - exact).abs().max() < near
    assert not torch.is_autocast_enabled("cpu")
    for kind, path in (("noise", VP()), ("velocity", VE())):
        v = network_field(network, "bf16", Convention(path, kind))(x, 0.1 + 0.8 * t, None)
        assert v.dtype == dtype
        assert network.computed == torch.bfloat16


@pytest.mark.native
def test_precisions_by_name():
    assert set(PRECISIONS) == {"auto", "fp32", "bf16"}
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) == torch.bfloat16
    assert autocast_dtype("auto", CPU) in (None, torch.bfloat16)
    for unknown in ("fp16", "BF16", ""):
        with pytest.raises(ValueError, match=f"unknown precision '{unknown}': expected one of auto, fp32, bf16"):
            network_field(Typed(), unknown)
