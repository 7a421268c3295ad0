"""A model as its user loads it: what it samples, by which convention, with guidance, from which average."""

import pytest
import torch

from fmcore.disk.files import ArtifactError
from fmcore.flow.fields import Convention, Guidance, network_field
from fmcore.flow.paths import VE, VP, Discrete
from fmcore.model import load as load_model
from fmcore.models.folder import save_model
from fmcore.ode.sampling import Sampling
from written import MODELS, write_model


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, request.param)
    return load_model(folder)


def test_sample_i_does_not_depend_on_how_many_are_drawn(model):
    many, few = model.sample(9, 2, precision="fp32"), model.sample(4, 2, precision="fp32")
    assert many.shape == (9, *model.shape)
    torch.testing.assert_close(many[:4], few, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(many[0], many[1])
    assert not torch.allclose(model.sample(4, 2, seed=1, precision="fp32"), few)


def test_more_samples_than_a_batch(tmp_path):
    write_model(tmp_path)
    model = load_model(tmp_path)
    many = model.sample(2003, 1, precision="fp32")
    assert many.shape == (2003, 2)
    torch.testing.assert_close(many[:5], model.sample(5, 1, precision="fp32"), rtol=1e-4, atol=1e-5)
    assert len(many.unique(dim=0)) == 2003


def test_a_label_is_asked_for_or_drawn(model):
    if model.num_classes is None:
        with pytest.raises(ValueError, match="label 0 was asked for, but this model was trained without classes"):
            model.sample(2, 1, label=0)
        return
    last = model.num_classes - 1
    by_label = [model.sample(6, 1, label=k, precision="fp32") for k in range(model.num_classes)]
    assert not torch.allclose(by_label[0], by_label[last])
    drawn = model.sample(6, 1, precision="fp32")
    for i in range(6):
        assert any(torch.allclose(drawn[i], one[i], rtol=1e-4, atol=1e-5) for one in by_label)
    for label in (-1, last + 1):
        with pytest.raises(ValueError, match=rf"label must lie in 0\.\.{last}, got {label}"):
            model.sample(2, 1, label=label)


@pytest.mark.native
@pytest.mark.parametrize(
    ("solver", "nfe", "message"),
    [
        ("heun", 4, "cannot spend 4"),
        ("rk4", 6, "cannot spend 6"),
        ("euler", 0, "cannot spend 0"),
        ("rk9", 1, "'rk9'"),
    ],
)
def test_evaluations_that_cannot_be_spent_are_refused(model, solver, nfe, message):
    with pytest.raises(ValueError, match=message):
        model.sample(2, Sampling(solver, nfe=nfe))


# --- conventions, guidance, averages ------------------------------------------------------------------------

CONVENTIONS = {
    "own path": Convention(VP(0.2, 15.0)),
    "a diffusion model's table": Convention(Discrete((0.9, 0.5, 0.1)), "noise"),
    "edm": Convention(VE(0.002, 80.0), "data"),
}


@pytest.mark.parametrize("kind", CONVENTIONS)
def test_a_model_keeps_its_convention_and_is_sampled_on_the_linear_path(tmp_path, kind):
    network = write_model(tmp_path / "plain")
    convention = CONVENTIONS[kind]
    config, shape, classes = MODELS["mlp"]
    options = {"network_config": config, "shape": shape, "num_classes": classes, "manifest": {}}
    save_model(tmp_path / "foreign", network, convention=convention, **options)
    model = load_model(tmp_path / "foreign")
    assert model.convention == convention
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 0.9, 5)
    expected = network_field(network, "fp32", convention)(x, t, None)
    torch.testing.assert_close(model.field("fp32")(x, t, None), expected, rtol=0, atol=0)
    assert not torch.allclose(expected, network(x, t, None))


@pytest.mark.native
def test_guidance_needs_a_model_that_was_trained_for_it(tmp_path):
    config, shape, classes = MODELS["mlp with classes"]
    network = write_model(tmp_path / "plain", "mlp with classes")
    with pytest.raises(ValueError, match="trained without label dropout"):
        load_model(tmp_path / "plain").sample(2, Sampling(nfe=2, guidance=Guidance(2.0)))
    options = {"network_config": config, "shape": shape, "num_classes": classes, "manifest": {}}
    save_model(tmp_path / "guided", network, null_label=classes, **options)
    model = load_model(tmp_path / "guided")
    plain, one, two = (
        model.sample(3, Sampling(nfe=4, guidance=guidance), label=1, precision="fp32")
        for guidance in (None, Guidance(1.0), Guidance(2.0))
    )
    half = model.sample(3, 2, label=1, precision="fp32")
    torch.testing.assert_close(one, half)  # a guided step costs two evaluations
    assert not torch.allclose(two, half)
    assert not torch.allclose(plain, half)
    with pytest.raises(ValueError, match="cannot spend 3"):
        model.sample(3, Sampling(nfe=3, guidance=Guidance(2.0)))


def test_further_averages_are_there_to_be_asked_for(tmp_path):
    config, shape, classes = MODELS["mlp"]
    network = write_model(tmp_path / "one")
    other = {name: value + 1 for name, value in network.state_dict().items()}
    options = {"network_config": config, "shape": shape, "num_classes": classes, "manifest": {}}
    save_model(tmp_path / "two", network, averages={200_000.0: other}, **options)
    first, second = load_model(tmp_path / "two"), load_model(tmp_path / "two", ema=200_000.0)
    assert first.digest != second.digest
    for name, value in network.state_dict().items():
        assert torch.equal(first.network.state_dict()[name], value)
        assert torch.equal(second.network.state_dict()[name], value + 1)
    with pytest.raises(
        ArtifactError, match=r"no weights with an EMA half-life of 7 images; further ones: ema-200000"
    ):
        load_model(tmp_path / "two", ema=7)
    damaged = tmp_path / "two" / "ema-200000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"oops")
    load_model(tmp_path / "two")
    with pytest.raises(ArtifactError, match=r"ema-200000.safetensors has SHA-256"):
        load_model(tmp_path / "two", ema=200_000.0)


def test_samples_of_a_stochastic_solver_do_not_depend_on_how_many_are_drawn(tmp_path):
    write_model(tmp_path / "m")
    model = load_model(tmp_path / "m")
    many, few = (model.sample(count, Sampling("sde", nfe=4), precision="fp32") for count in (20, 5))
    torch.testing.assert_close(many[:5], few)
    assert not torch.allclose(many, model.sample(20, 4, precision="fp32"))
