"""Diffusion models read as fields: diffusers' own samplers, Karras' ODE and exact predictions are the judges."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from scipy.integrate import solve_ivp

from diffusers_teachers import (
    BETAS,
    EULER,
    PREDICTIONS,
    SETTINGS,
    assert_same_states,
    ddim,
    field_of,
    noise,
    saved,
    unet,
)
from fmcore.analytic import gaussian_field, mixture_field
from fmcore.disk.files import ArtifactError
from fmcore.flow.couplings import Pairs, Stored
from fmcore.flow.fields import network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR, VE
from fmcore.flow.times import EDMGrid, Uniform, uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.intake.teachers import WEIGHTS, edm_field, read_teacher, teacher_files
from fmcore.models.networks import Diffusers, DiffusersUNet
from fmcore.ode.reflow import generate_pairs
from fmcore.ode.solvers import SOLVERS, integrate, integrate_adaptive
from scripts.tiny_ddpm import save, trained_ddpm

# --- a DDPM is DDIM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_euler_on_the_linear_path_is_ddim(tmp_path, prediction, betas, spacing):
    """Every state of 10 DDIM steps is our Euler state, x / (a + s) at t = a / (a + s), step by step.

    DDIM joins the predicted data and noise at the next level, a' x_1 + s' x_0; divided by a' + s' that is
    t' x_1 + (1 - t') x_0, which an Euler step of velocity x_1 - x_0 reaches from t: no limit is taken. The last
    alpha is one (`set_alpha_to_one`), t = 1. What is left is float32: diffusers rounds 1 - alphas_cumprod, of
    which 1e-4 is near the data, and random networks, unlike trained ones, are not contracting. `linspace` is
    left out: there DDIMScheduler does not step to the level of its next timestep.
    """
    network = unet()
    options = {"beta_schedule": betas, "prediction_type": prediction}
    schedule = DDIMScheduler(**options, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing)
    field = field_of(read_teacher(saved(tmp_path, network, schedule)))
    theirs = ddim(network, schedule, noise(4), 10)
    assert theirs[-1][0] == 1
    ours = assert_same_states(field, theirs)
    assert (ours[-1] - theirs[0][1]).norm() > 0.1 * ours[-1].norm()  # it does go somewhere


@pytest.mark.parametrize("reach", [1.0, 0.5])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipped_data_is_ddims(tmp_path, prediction, reach):
    network = unet()
    schedule = DDIMScheduler(prediction_type=prediction, clip_sample_range=reach, timestep_spacing="trailing")
    teacher = read_teacher(saved(tmp_path, network, schedule))
    assert teacher.convention.clip == reach
    ours = assert_same_states(field_of(teacher), ddim(network, schedule, noise(4), 10))
    assert ours[-1].abs().max() == pytest.approx(reach, rel=1e-5)
    loose = DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")
    assert read_teacher(saved(tmp_path / "loose", network, loose)).convention.clip is None
    if prediction == "epsilon":
        assert ddim(network, loose, noise(4), 10)[-1][1].abs().max() > 3


@pytest.mark.parametrize("betas", BETAS)
def test_one_ddim_step_to_the_first_level_of_the_table(tmp_path, betas):
    """`set_alpha_to_one=False`: the last step goes nowhere, and the one before ends short of t = 1."""
    network = unet()
    schedule = DDIMScheduler(beta_schedule=betas, clip_sample=False, set_alpha_to_one=False)
    field = field_of(read_teacher(saved(tmp_path, network, schedule)))
    *theirs, (end, still) = ddim(network, schedule, noise(4), 10)
    assert theirs[-1][0] == end < 1
    torch.testing.assert_close(theirs[-1][1], still, rtol=1e-4, atol=1e-4)
    assert_same_states(field, theirs)


@pytest.mark.parametrize("options", [{"trained_betas": np.linspace(1e-3, 0.05, 200).tolist()}, {"beta_end": 0.08}])
def test_other_tables_and_lengths(tmp_path, options):
    """Tables of 200 steps: the network is told the steps of its own schedule."""
    network = unet(channels=3, gain=0.5)
    schedule = DDIMScheduler(num_train_timesteps=200, clip_sample=False, **options)
    teacher = read_teacher(saved(tmp_path, network, schedule))
    assert teacher.network_config.timesteps == 200
    assert teacher.shape == (3, 8, 8)
    assert_same_states(field_of(teacher), ddim(network, schedule, noise(2, (3, 8, 8)), 20))


@pytest.mark.parametrize("timestep", [0, 1, 500, 998, 999])
def test_the_network_is_told_its_own_timestep(timestep):
    network = unet()
    ours = DiffusersUNet(Diffusers(dict(network.config)))
    ours.unet = network
    x = noise(3)
    t = torch.full((3,), 1 - timestep / 999)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, None), network(x, timestep).sample, rtol=1e-3, atol=1e-3)


# --- exact predictions ------------------------------------------------------------------------------------

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


class ExactUNet(torch.nn.Module):
    """Stands in for a trained UNet2DModel: what a DDPM of the mixture should predict at a timestep.

    Between timesteps it interpolates the logit of alphas_cumprod.
    """

    def __init__(self, alphas_cumprod, prediction, reverse=False):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        table = alphas_cumprod.double().numpy()
        self.logit, self.prediction, self.reverse = np.log(table / (1 - table)), prediction, reverse

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        at = (len(self.logit) - 1 - timestep) if self.reverse else timestep
        logit = torch.from_numpy(np.interp(at.double().numpy(), np.arange(len(self.logit)), self.logit))
        a, s = torch.sigmoid(logit).sqrt()[:, None], torch.sigmoid(-logit).sqrt()[:, None]
        x = sample.double().flatten(1)
        x1 = posterior_data(x / a, s / a)
        x0 = (x - a * x1) / s
        out = {"epsilon": x0, "sample": x1, "v_prediction": a * x0 - s * x1}[self.prediction]
        return (out.reshape(sample.shape).to(sample.dtype),)


def exact_teacher(folder, betas, prediction, reverse=False):
    schedule = DDPMScheduler(beta_schedule=betas, prediction_type=prediction, clip_sample=False)
    teacher = read_teacher(saved(folder, unet(), schedule))
    teacher.network.unet = ExactUNet(schedule.alphas_cumprod, prediction, reverse)
    return teacher


def statistics(points):
    """Share of the component at x = 3, and the means and deviations of both."""
    first = points[:, 0] > 1
    parts = [points[first], points[~first]]
    return first.double().mean(), [p.mean(0) for p in parts], [p.std(0) for p in parts]


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_exact_predictions_give_the_exact_field(tmp_path, prediction, betas):
    """At the noise levels of the table, which begins at t = 0.027 for scaled_linear."""
    teacher = exact_teacher(tmp_path, betas, prediction)
    field, exact = field_of(teacher), mixture_field(WEIGHT, MEAN, STD)
    g = torch.Generator().manual_seed(0)
    t = 0.03 + 0.95 * torch.rand(512, generator=g, dtype=torch.float64)
    x1 = MEAN[torch.multinomial(WEIGHT, 512, True, generator=g)]
    x = t[:, None] * x1 + (1 - t[:, None]) * torch.randn(512, 2, generator=g, dtype=torch.float64)
    with torch.no_grad():
        v = field(x.reshape(-1, 1, 1, 2), t, None).flatten(1)
    # The network computes in float32, and noise becomes data by a division by a, data noise by one by s.
    torch.testing.assert_close(v, exact(x, t, None), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("betas", "prediction"), list(zip(BETAS, PREDICTIONS, strict=True)))
def test_exact_predictions_sample_the_data_from_t_0(tmp_path, betas, prediction):
    field = field_of(exact_teacher(tmp_path, betas, prediction))
    x0 = noise(4000, (1, 1, 2))
    points = integrate(field, x0, uniform_grid(100), SOLVERS["heun"]).flatten(1).double()
    share, means, stds = statistics(points)
    assert abs(share - 0.75) < 0.03  # four standard errors of 4000 draws
    for i in range(2):
        torch.testing.assert_close(means[i], MEAN[i], rtol=0, atol=0.08)
        torch.testing.assert_close(stds[i], STD[i].expand(2), rtol=0.1, atol=0)


def test_a_reversed_clock_does_not_sample_the_data(tmp_path):
    """The twin of the test above: were the network told T - 1 - timestep, nothing of it would hold."""
    field = field_of(exact_teacher(tmp_path, "linear", "epsilon", reverse=True))
    points = integrate(field, noise(500, (1, 1, 2)), uniform_grid(50), EULER).flatten(1).double()
    nearest = (points[:, None] - MEAN).norm(dim=2).amin(1)
    assert nearest.median() > 1.0


# --- a trained DDPM ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    """A few seconds' training of the script's DDPM, and the teacher read back from disk.

    It predicts v: an error e of predicted noise is one of e / a in the data, with a = 0.006 at t = 0, which takes
    more training than this.
    """
    network, schedule, losses = trained_ddpm(120, "v_prediction")
    folder = tmp_path_factory.mktemp("ddpm")
    save(network, schedule, folder)
    return network, read_teacher(folder), losses


def test_a_trained_ddpm_samples_its_data_from_t_0(ddpm, digits):
    _, teacher, _ = ddpm
    x0 = noise(128)
    images = integrate(field_of(teacher), x0, uniform_grid(50), EULER)
    mean, means, spread = digits.mean(0), images.mean(0), digits.std(0).mean()
    away = (means - mean).square().mean().sqrt()
    assert away < 0.3 * (x0.mean(0) - mean).square().mean().sqrt()
    assert away < 0.5 * spread
    assert torch.corrcoef(torch.stack([means.flatten(), mean.flatten()]))[0, 1] > 0.9
    # Images look like some digit more than noise does: distance to the nearest one.
    nearest = [torch.cdist(x.flatten(1), digits.flatten(1)).amin(1).mean() for x in (images, x0)]
    assert nearest[0] < 0.6 * nearest[1]


def test_a_trained_ddpm_agrees_with_diffusers_ddim(ddpm):
    """50 DDIM steps and as many uniform Euler steps from the same noise: other knots, the same ODE."""
    network, teacher, _ = ddpm
    schedule = DDIMScheduler(clip_sample=True, timestep_spacing="trailing", prediction_type="v_prediction")
    x0 = noise(32)
    theirs = ddim(network, schedule, x0, 50)
    ours = integrate(field_of(teacher), x0, uniform_grid(50), EULER)
    assert torch.corrcoef(torch.stack([theirs[-1][1].flatten(), ours.flatten()]))[0, 1] > 0.99
    assert_same_states(field_of(teacher), theirs, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_script_trains_every_prediction(prediction):
    _, schedule, losses = trained_ddpm(12, prediction, conditional=True, every=4)
    assert schedule.config.prediction_type == prediction
    assert len(losses) == 3
    assert losses[-1] < losses[0]


# --- EDM --------------------------------------------------------------------------------------------------


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


# --- classes ----------------------------------------------------------------------------------------------


def test_labels_reach_a_conditional_teacher(tmp_path):
    network = unet(num_class_embeds=4)
    network.class_embedding.weight *= 3
    schedule = DDIMScheduler(clip_sample=False)
    teacher = read_teacher(saved(tmp_path, network, schedule))
    assert teacher.num_classes == 4
    field, label = field_of(teacher), torch.tensor([0, 3, 1])
    assert_same_states(field, ddim(network, schedule, noise(3), 5, label), label)
    x, t = noise(1).expand(3, -1, -1, -1), torch.full((3,), 0.4)
    with torch.no_grad():
        v = field(x, t, label)
    assert (v[0] - v[1]).abs().max() > 1e-2
    assert (v[0] - v[2]).abs().max() > 1e-2


def test_an_unconditional_teacher_has_no_classes(tmp_path):
    assert read_teacher(saved(tmp_path, unet(), DDPMScheduler())).num_classes is None


# --- files ------------------------------------------------------------------------------------------------


def change(path, **values):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | values))


def flat(folder):
    """The layout of older repositories: everything in one folder."""
    for path in (folder / "unet").iterdir():
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    return folder


def flat_with_scheduler(folder):
    (flat(folder) / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    (folder / "scheduler").rmdir()
    return folder


@pytest.mark.parametrize("layout", [lambda folder: folder, flat, flat_with_scheduler])
def test_layouts(tmp_path, layout):
    network = unet()
    folder = layout(saved(tmp_path, network, DDPMScheduler()))
    assert all(path.is_file() for path in teacher_files(folder))
    teacher = read_teacher(str(folder))
    x = noise(2)
    with torch.no_grad():
        torch.testing.assert_close(teacher.network(x, torch.zeros(2), None), network(x, 999).sample)
    assert not teacher.network.training


def test_reading_is_silent_and_fetches_nothing(tmp_path, capsys, recwarn):
    read_teacher(saved(tmp_path, unet(), DDPMScheduler()))
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


def test_half_precision_weights_are_computed_with_in_single(tmp_path):
    network = unet()
    folder = saved(tmp_path, network, DDPMScheduler())
    weights = folder / "unet" / WEIGHTS
    save_file({name: value.half() for name, value in load_file(weights).items()}, weights)
    teacher = read_teacher(folder)
    assert all(p.dtype == torch.float32 for p in teacher.network.parameters())
    x = noise(2)
    with torch.no_grad():
        ours = teacher.network(x, torch.zeros(2), None)
    torch.testing.assert_close(ours, network(x, 999).sample, rtol=0.02, atol=0.02)


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_weights_with_the_attention_names_of_older_diffusers(tmp_path):
    """google/ddpm-* keep query, key, value and proj_attn, which diffusers renames as it reads."""
    network = unet(add_attention=True, attention_head_dim=8)
    folder = saved(tmp_path, network, DDPMScheduler())
    weights = folder / "unet" / WEIGHTS
    tensors, renamed = load_file(weights), {}
    for name, value in tensors.items():
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
        renamed[name] = value
    assert renamed.keys() != tensors.keys()
    save_file(renamed, weights)
    x = noise(2)
    with torch.no_grad():
        theirs = UNet2DModel.from_pretrained(folder / "unet")(x, 999).sample
        torch.testing.assert_close(theirs, network(x, 999).sample)
        torch.testing.assert_close(read_teacher(folder).network(x, torch.zeros(2), None), theirs)


def remove(*parts):
    return lambda folder: folder.joinpath(*parts).unlink()


def pickle_only(folder):
    path = folder / "unet" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def truncate(folder):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def other_weights(folder):
    unet(block_out_channels=(8, 16)).save_pretrained(folder / "unet2", safe_serialization=True)
    (folder / "unet2" / WEIGHTS).replace(folder / "unet" / WEIGHTS)


def network_says(**values):
    return lambda folder: change(folder / "unet" / "config.json", **values)


def schedule_says(**values):
    return lambda folder: change(folder / "scheduler" / "scheduler_config.json", **values)


def zero_snr(folder):
    DDPMScheduler(rescale_betas_zero_snr=True).save_pretrained(folder / "scheduler")


def not_json(folder):
    (folder / "unet" / "config.json").write_text("{")


CONFIG, SCHEDULE = "unet/config.json", "scheduler/scheduler_config.json"
DAMAGES = {
    "no scheduler": (remove("scheduler", "scheduler_config.json"), "", "scheduler_config.json"),
    "no config": (remove("unet", "config.json"), CONFIG, "is missing"),
    "no weights": (remove("unet", WEIGHTS), f"unet/{WEIGHTS}", "is missing.*safetensors"),
    "only a pickle": (pickle_only, f"unet/{WEIGHTS}", "is missing.*safetensors"),
    "config is not JSON": (not_json, CONFIG, "not JSON"),
    "truncated": (truncate, f"unet/{WEIGHTS}", "damaged"),
    "other architecture": (other_weights, f"unet/{WEIGHTS}", "not of this network"),
    "other class": (network_says(_class_name="UNet2DConditionModel"), CONFIG, "UNet2DConditionModel"),
    "no class": (network_says(_class_name=None), CONFIG, "expected a UNet2DModel"),
    "learnt variance": (network_says(out_channels=2), CONFIG, "learnt variance"),
    "no size": (network_says(sample_size=None), CONFIG, "sample_size"),
    "unknown block": (network_says(down_block_types=["Odd", "DownBlock2D"]), "", "Odd"),
    "levels that do not match": (network_says(block_out_channels=[16]), "", "block_out_channels"),
    "unknown prediction": (schedule_says(prediction_type="flow"), SCHEDULE, "epsilon, sample, v_prediction.*flow"),
    "unknown betas": (schedule_says(beta_schedule="odd"), SCHEDULE, "odd"),
    "no betas": (
        lambda f: (f / SCHEDULE).write_text('{"_class_name": "ScoreSdeVeScheduler"}'),
        SCHEDULE,
        "ScoreSde",
    ),
    "EDM of the data": (schedule_says(_class_name="EDMEulerScheduler", prediction_type="sample"), SCHEDULE, "EDM"),
    "EDM without a range": (
        schedule_says(_class_name="EDMEulerScheduler", sigma_min=2.0, sigma_max=1.0),
        SCHEDULE,
        "sigma_min",
    ),
    "zero SNR": (zero_snr, SCHEDULE, "rescale_betas_zero_snr: expected false"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_teacher_is_refused_in_one_line(tmp_path, damage):
    spoil, file, message = DAMAGES[damage]
    folder = saved(tmp_path / "model", unet(), DDPMScheduler())
    read_teacher(folder)
    spoil(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_teacher(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert str(folder / file) in text


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="nowhere") as caught:
        read_teacher(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"time_embedding_type": "learned", "num_train_timesteps": 1000},
        {"class_embed_type": "timestep"},
        {"class_embed_type": "identity"},
    ],
)
def test_networks_that_would_fail_later_are_refused_when_read(tmp_path, options):
    """A learnt embedding takes whole timesteps only; an embedding of no classes is told something else."""
    folder = saved(tmp_path, unet(), DDPMScheduler())
    UNet2DModel(**(SETTINGS | options)).save_pretrained(folder / "unet", safe_serialization=True)
    with pytest.raises(ArtifactError, match="unet"):
        read_teacher(folder)


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [DDPMScheduler(), DDPMScheduler(prediction_type="v_prediction"), EDMEulerScheduler()],
    ids=["epsilon", "v", "edm"],
)
def test_gradients_reach_every_weight_of_a_teacher(tmp_path, schedule):
    teacher = read_teacher(saved(tmp_path, unet(), schedule))
    v = field_of(teacher)(noise(4), torch.tensor([0.0, 0.3, 0.7, 1.0]), None)
    v.square().mean().backward()
    for name, parameter in teacher.network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_teacher_can_be_reflowed(ddpm):
    """Its own pairs, its own convention: the loss on them falls, and one Euler step gets nearer to 50."""
    _, teacher, _ = ddpm
    network = teacher.network_config.build(teacher.shape, teacher.num_classes)
    network.load_state_dict(teacher.network.state_dict())
    batches = generate_pairs(
        field_of(teacher), 128, shape=teacher.shape, seed=0, grid=uniform_grid(20), solver=EULER, batch=64
    )
    pairs = Pairs(*(torch.cat(part) for part in list(zip(*batches, strict=True))[:2]))
    config = TrainConfig(images=64 * 60, batch_size=64, lr=1e-3, warmup_images=640)
    objective = flow_objective(
        Stored(pairs), LINEAR, Uniform(), Squared(), batch_size=64, precision="fp32", convention=teacher.convention
    )

    def gap(network):
        network.eval()
        field = network_field(network, "fp32", teacher.convention)
        return (integrate(field, pairs.x0, uniform_grid(2), EULER) - pairs.x1).square().mean()

    before = gap(network)
    records = list(train(new_state(network, config), objective, config, seed=0, every=10))
    assert records[-1].loss < 0.7 * records[0].loss
    assert gap(network) < before
