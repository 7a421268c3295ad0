"""Diffusion models read as fields: diffusers' own samplers and exact predictions are the judges."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler

from diffusers_teachers import BETAS, EULER, PREDICTIONS, assert_same_states, ddim, field_of, noise, saved, unet
from fmcore.analytic import mixture_field
from fmcore.flow.couplings import Pairs, Stored
from fmcore.flow.fields import network_field
from fmcore.flow.losses import Squared
from fmcore.flow.paths import LINEAR
from fmcore.flow.times import Uniform, uniform_grid
from fmcore.flow.training import TrainConfig, flow_objective, new_state, train
from fmcore.intake.teachers import read_teacher
from fmcore.models.networks import Diffusers, DiffusersUNet
from fmcore.ode.reflow import generate_pairs
from fmcore.ode.solvers import SOLVERS, integrate
from mixture_denoiser import MEAN, STD, WEIGHT, posterior_data
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
