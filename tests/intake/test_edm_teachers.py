"""Models after Karras et al. read as fields: their ODE, diffusers' sampler and closed forms are the judges."""

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from scipy.integrate import solve_ivp

from diffusers_teachers import assert_same_states, field_of, noise, saved, unet
from fmcore.analytic import gaussian_field
from fmcore.flow.paths import VE
from fmcore.flow.times import EDMGrid
from fmcore.intake.teachers import edm_field, read_teacher
from fmcore.ode.solvers import SOLVERS, integrate, integrate_adaptive
from mixture_denoiser import MEAN, posterior_data


def test_edm_field_of_a_gaussian_is_the_closed_form():
    """D = (s^2 x + sigma^2 m) / (s^2 + sigma^2) is the field N(0, I) -> N(m, s^2 I) for sigma in the range."""
    m, s = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    seen = []

    def denoiser(x, sigma, label):
        seen.append((sigma, label))
        square = sigma[:, None] ** 2
        return (s**2 * x + square * m) / (s**2 + square)

    t = torch.linspace(1 / 81, 1 / 1.002, 64, dtype=torch.float64)
    x = noise(64, (2,)).double()
    label = torch.arange(64)
    v = edm_field(denoiser)(x, t, label)
    zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(v, gaussian_field(zero, one, m, s)(x, t, None), rtol=1e-9, atol=1e-9)
    ((sigma, passed),) = seen
    torch.testing.assert_close(sigma, (1 - t) / t, rtol=1e-9, atol=0)
    assert torch.equal(passed, label)


def test_edm_field_takes_noise_levels_it_does_not_know_at_the_nearest():
    seen = []

    def denoiser(x, sigma, label):
        seen.extend(sigma.tolist())
        return torch.zeros_like(x)

    edm_field(denoiser, sigma_min=0.1, sigma_max=20.0)(
        torch.ones(4, 1), torch.tensor([0.0, 0.01, 0.99, 1.0]), None
    )
    assert seen == pytest.approx([20.0, 20.0, 0.1, 0.1])


def test_edm_field_is_karras_ode():
    """dx / dsigma = (x - D) / sigma, integrated by scipy from 80 to 0.002: the same ends, scaled by t."""

    def denoiser(x, sigma, label):
        return posterior_data(x, sigma[:, None])

    x = 80 * noise(16, (2,)).double()

    def slope(sigma, flat):
        point = torch.from_numpy(flat.reshape(16, 2))
        return ((point - posterior_data(point, torch.full((16, 1), sigma))) / sigma).flatten().numpy()

    ends = solve_ivp(slope, (80.0, 0.002), x.flatten().numpy(), rtol=1e-9, atol=1e-9, method="DOP853")
    assert ends.success
    start, stop = 1 / 81, 1 / 1.002
    grid = 1 / (1 + torch.logspace(np.log10(80), np.log10(0.002), 401, dtype=torch.float64))
    ours = integrate(edm_field(denoiser), x * start, grid, SOLVERS["rk4"])
    torch.testing.assert_close(ours / stop, torch.from_numpy(ends.y[:, -1].reshape(16, 2)), rtol=1e-6, atol=1e-6)
    assert {(point - MEAN).norm(dim=1).argmin().item() for point in ours / stop} == {0, 1}


def test_the_adaptive_solver_reaches_the_data():
    """torchdiffeq steps past the end and interpolates back, so the field is asked for times beyond 1."""

    def denoiser(x, sigma, label):
        return posterior_data(x, sigma[:, None])

    x0 = noise(16, (2,)).double()
    ends = integrate_adaptive(edm_field(denoiser), x0, rtol=1e-6, atol=1e-6)
    exact = integrate(edm_field(denoiser), x0, EDMGrid()(400), SOLVERS["heun"])
    torch.testing.assert_close(ends, exact, rtol=0, atol=2e-3)


def edm_schedule(prediction, **options):
    return EDMEulerScheduler(prediction_type=prediction, **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("options", [{}, {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 0.8}])
def test_edm_network_is_preconditioned_as_diffusers_does(tmp_path, prediction, options):
    network, schedule = unet(), edm_schedule(prediction, **options)
    teacher = read_teacher(saved(tmp_path, network, schedule))
    low, high = schedule.config.sigma_min, schedule.config.sigma_max
    assert teacher.convention.path == VE(low, high)
    assert teacher.convention.predicts == "data"
    t = torch.tensor([0.0, 0.25, 0.6, 1.0])
    for i, sigma in enumerate(high * (low / high) ** t.double()):
        sigma = sigma.float()
        x = noise(1, seed=i) * sigma
        with torch.no_grad():
            out = network(schedule.precondition_inputs(x, sigma), schedule.precondition_noise(sigma)).sample
            expected = schedule.precondition_outputs(x, out, sigma)
            torch.testing.assert_close(teacher.network(x, t[i : i + 1], None), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
def test_euler_on_the_linear_path_is_edm_euler(tmp_path, prediction, sigmas):
    """x_linear = t x at t = 1 / (1 + sigma): diffusers' 12 steps, each state, the last at sigma = 0."""
    network = unet(gain=0.5)
    schedule = edm_schedule(prediction, sigma_schedule=sigmas)
    field = field_of(read_teacher(saved(tmp_path, network, schedule)))
    schedule.set_timesteps(12)
    states = [80 * noise(4)]
    with torch.no_grad():
        for i in schedule.timesteps:
            out = network(schedule.scale_model_input(states[-1], i), i).sample
            states.append(schedule.step(out, i, states[-1], s_churn=0.0).prev_sample)
    knots = [1 / (1 + float(sigma)) for sigma in schedule.sigmas]
    assert knots[-1] == 1
    assert_same_states(field, [(t, t * x) for t, x in zip(knots, states, strict=True)])
