"""Networks, and the fields made of them."""

from dataclasses import asdict, replace

import pytest
import torch

from fmcore.flow.fields import PRECISIONS, autocast_dtype, network_field
from fmcore.models.folder import network_from
from fmcore.models.networks import (
    MLP,
    NETWORKS,
    Diffusers,
    UNet,
    UNet1D,
    initialised,
    time_features,
    transfer,
)

pytestmark = pytest.mark.numerics

SHAPES = {"mlp": [(2,), (1, 8, 8), (3, 4, 6)], "unet1d": [(2, 16), (1, 4)]}
IMAGES = [(1, 8, 8), (3, 16, 8)]
CASES = [(name, shape) for name in NETWORKS for shape in SHAPES.get(name, IMAGES)]


def build(name, shape, num_classes=None, config=None):
    """A network with every weight away from its special start."""
    torch.manual_seed(0)
    network = (config or NETWORKS[name]()).build(shape, num_classes).eval()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return network


def inputs(shape, batch=3):
    g = torch.Generator().manual_seed(1)
    return torch.randn((batch, *shape), generator=g), torch.rand(batch, generator=g), torch.arange(batch)


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("classes", [None, 4])
def test_velocity_has_the_shape_of_x_and_depends_on_everything(name, shape, classes):
    network = build(name, shape, classes)
    x, t, label = inputs(shape)
    label = None if classes is None else label
    with torch.no_grad():
        v = network(x, t, label)
        assert v.shape == x.shape
        assert v.dtype == torch.float32
        assert not torch.allclose(v, network(x + 0.5, t, label), atol=1e-4)
        assert not torch.allclose(v, network(x, (t + 0.3) % 1, label), atol=1e-4)
        if label is not None:
            assert not torch.allclose(v, network(x, t, (label + 1) % classes), atol=1e-4)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_samples_do_not_see_their_batch_mates(name, shape):
    network = build(name, shape, 4)
    x, t, label = inputs(shape)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        v = network(x, t, label)
        torch.testing.assert_close(network(x[order], t[order], label[order]), v[order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x[1:2], t[1:2], label[1:2]), v[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_weight_is_used(name, shape):
    network = build(name, shape, 3)
    network(*inputs(shape)).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_configuration_survives_json(name):
    config = NETWORKS[name]()
    value = asdict(config)
    as_json = {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
    assert network_from(as_json) == config


@pytest.mark.parametrize("fourier", [0, 3])
@pytest.mark.parametrize("shape", SHAPES["mlp"])
def test_mlp_starts_at_velocity_zero(shape, fourier):
    x, t, _ = inputs(shape)
    assert torch.equal(MLP(width=16, fourier=fourier).build(shape, None)(x, t, None), torch.zeros_like(x))


def test_mlp_fourier_features_tell_close_points_apart():
    """More octaves, larger response to a small shift at equal weights: what they are for."""

    def response(fourier):
        network = build("mlp", (2,), config=MLP(width=256, depth=1, fourier=fourier))
        x, t, _ = inputs((2,), 64)
        with torch.no_grad():
            return (network(x + 0.05, t, None) - network(x, t, None)).abs().mean()

    assert response(6) > 2 * response(0)


@pytest.mark.parametrize(
    "config", [UNet(attention=True), UNet(channels=(8, 16, 16), layers=2), UNet(dropout=0.5), UNet(patch=2)]
)
def test_unet_options(config):
    x, t, _ = inputs((1, 8, 8))
    network = build("unet", (1, 8, 8), config=config)
    with torch.no_grad():
        evaluated = [network(x, t, None) for _ in range(2)]
        trained = [network.train()(x, t, None) for _ in range(2)]
    assert torch.equal(*evaluated)
    assert torch.equal(*trained) == (config.dropout == 0)
    attention = [key for key, _ in network.named_parameters() if "attentions" in key]
    assert bool(attention) == config.attention


def test_unet_takes_a_patch_as_the_channels_of_one_position():
    """Pixel (patch i + a, patch j + b) is channel (a, b) at (i, j), on both sides of the U-Net."""
    network = build("unet", (3, 16, 8), config=UNet(patch=2))
    x, t, _ = inputs((3, 16, 8))
    patched = torch.stack([x[:, c, a::2, b::2] for c in range(3) for a in range(2) for b in range(2)], 1)
    with torch.no_grad():
        inner = network.unet(patched, 1000 * t).sample.unflatten(1, (3, 2, 2))
        v = network(x, t, None)
    for a in range(2):
        for b in range(2):
            torch.testing.assert_close(v[:, :, a::2, b::2], inner[:, :, a, b])


def test_unet_sees_halfway_as_diffusers_timestep_500():
    network = build("unet", (1, 8, 8))
    x, _, _ = inputs((1, 8, 8))
    with torch.no_grad():
        theirs = network.unet(x, 500).sample
        torch.testing.assert_close(network(x, torch.full((3,), 0.5), None), theirs)
        assert not torch.allclose(network.unet(x, 0).sample, theirs, atol=1e-3)


def test_a_1d_unet_keeps_its_weights_when_labels_are_dropped():
    labelled, plain = build("unet1d", (2, 16), 3), build("unet1d", (2, 16))
    assert transfer(plain, labelled)
    x, t, _ = inputs((2, 16))
    with torch.no_grad():
        labelled.classes.weight.zero_()  # as if there were none
        torch.testing.assert_close(plain(x, t, None), labelled(x, t, torch.zeros(3, dtype=torch.int64)))


def test_time_features_reach_from_half_a_period_to_sixteen():
    t = torch.linspace(0, 1, 4001)
    features = time_features(t)
    sines, cosines = features.chunk(2, dim=1)
    torch.testing.assert_close(sines.square() + cosines.square(), torch.ones_like(sines), rtol=0, atol=1e-4)
    flips = (cosines[1:].sign() != cosines[:-1].sign()).sum(0)  # a cosine changes sign twice a period
    assert flips[0] == 1
    assert flips[-1] == 32
    assert (features[1:] - features[:-1]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(width=0), r"width in 1\.\."),
        (lambda: MLP(depth=0), r"depth in 1\.\."),
        (lambda: MLP(fourier=-1), r"fourier in 0\.\."),
        (lambda: UNet(channels=()), "multiples of 8"),
        (lambda: UNet(channels=(8, 12)), r"\[8, 12\]"),
        (lambda: UNet(layers=0), r"layers in 1\.\."),
        (lambda: UNet(dropout=1.0), "dropout < 1, got 1.0"),
        (lambda: UNet(patch=0), "patch >= 1, got 0"),
        (
            lambda: UNet(patch=4).build((1, 28, 28), None),
            r"levels and patch 4 .* by 8, got \(28, 28\)",
        ),
        (lambda: UNet().build((2,), None), "use mlp for points"),
        (lambda: UNet1D(channels=(8,)), "two or more channels that are multiples of 8"),
        (lambda: MLP(depth=10**8), r"depth in 1\.\.200"),
        (lambda: MLP(width=10**14), r"width in 1\.\.65536"),
        (lambda: UNet(channels=(10**8,)), "multiples of 8, at most 65536"),
        (lambda: UNet1D(layers=0), r"layers in 1\.\."),
        (lambda: UNet1D().build((1, 8, 8), None), r"unet1d needs series \(C, L\)"),
        (lambda: UNet1D().build((2, 10), None), "a length divisible by 4, got 10"),
        (lambda: UNet().build((1, 7, 8), None), r"divisible by 2, got \(7, 8\)"),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.precisions
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_field_keeps_the_dtype_of_x_whatever_it_computes_in(name, shape, precision):
    network = build(name, shape)
    x, t, _ = inputs(shape)
    with torch.no_grad():
        exact = network(x, t, None)
        v = network_field(network, precision)(x.double(), t.double(), None)
    assert v.dtype == torch.float64
    scale = exact.abs().mean()
    assert (v - exact).abs().mean() < (1e-6 if precision == "fp32" else 0.05) * scale


def test_time_keeps_its_resolution_in_bf16():
    """0.996 and 0.999 are one number in bfloat16; the field must tell them apart as float32 does."""
    network = build("mlp", (2,))
    x, _, _ = inputs((2,), 256)

    def change(precision):
        field = network_field(network, precision)
        with torch.no_grad():
            return (field(x, torch.full((256,), 0.999), None) - field(x, torch.full((256,), 0.996), None)).mean(0)

    assert change("bf16").abs().max() > 0.5 * change("fp32").abs().max() > 0


@pytest.mark.precisions
def test_precisions():
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("auto", cpu) in (None, torch.bfloat16)
    with pytest.raises(ValueError, match="'fp8': expected one of auto, fp32, bf16"):
        autocast_dtype("fp8", cpu)


SMALL = {
    "mlp": (MLP(width=16, depth=1), (2,), "classes.weight"),
    "unet": (UNet(channels=(8, 16), dropout=0.1), (1, 8, 8), "unet.class_embedding.weight"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_conditional_network_knows_a_null_label_besides_the_classes(name):
    config, shape, embedding = SMALL[name]
    network = build(name, shape, 3, config)
    assert len(network.state_dict()[embedding]) == 4
    x, t, label = inputs(shape)
    with torch.no_grad():
        null = network(x, t, torch.full((3,), 3))
        assert not torch.allclose(null, network(x, t, label), atol=1e-4)
    with pytest.raises(IndexError):
        network(x, t, torch.full((3,), 4))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("classes", [None, 3])
def test_initial_weights_depend_on_the_seed_alone(name, classes):
    config, shape, _ = SMALL[name]
    first = initialised(config, shape, classes, 7).state_dict()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, other = (initialised(config, shape, classes, seed).state_dict() for seed in (7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert any(not torch.equal(other[key], value) for key, value in first.items())


def pair(name, source=None, classes=(3, 3), **changes):
    """A network and one to take its weights from, which differs by `changes`; no weight of theirs is equal."""
    config, shape, embedding = SMALL[name]
    network = initialised(config, shape, classes[0], 1)
    other = build(name, shape, classes[1], source or replace(config, **changes))
    return network, other, embedding


def copied(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "changes", "classes"),
    [
        ("mlp", {}, (3, 3)),
        ("mlp", {}, (None, None)),
        ("unet", {"dropout": 0.0}, (3, 3)),
        ("unet", {"dropout": 0.5}, (None, None)),
    ],
)
def test_weights_transfer_within_an_architecture_whatever_the_dropout(name, changes, classes):
    network, source, _ = pair(name, classes=classes, **changes)
    given = copied(source)
    assert transfer(network, source)
    assert all(torch.equal(value, given[key]) for key, value in network.state_dict().items())
    x, t, label = inputs(SMALL[name][1])
    label = None if classes[0] is None else label
    with torch.no_grad():
        assert torch.equal(network.eval()(x, t, label), source.eval()(x, t, label))
    with torch.no_grad():  # a copy, not a share: training one leaves the other
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, given[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("classes", [(3, 5), (5, 3), (3, None), (None, 3)])
def test_other_classes_transfer_all_but_their_embedding(name, classes):
    network, source, embedding = pair(name, classes=classes)
    own, given = copied(network), copied(source)
    assert transfer(network, source)
    after = network.state_dict()
    assert after.keys() == own.keys()
    for key, value in after.items():
        assert torch.equal(value, own[key] if key == embedding else given[key]), key


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mlp", {"width": 8}),
        ("mlp", {"depth": 2}),
        ("mlp", {"fourier": 1}),
        ("unet", {"channels": (8, 8)}),
        ("unet", {"channels": (8, 16, 16)}),
        ("unet", {"layers": 2}),
        ("unet", {"attention": True}),
        ("unet", {"source": MLP(width=16)}),
        ("mlp", {"source": MLP(width=8, depth=3)}),
    ],
)
def test_another_architecture_transfers_nothing(name, changes):
    network, source, _ = pair(name, **changes)
    own, given = copied(network), copied(source)
    assert not transfer(network, source)
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    assert all(torch.equal(value, given[key]) for key, value in source.state_dict().items())


def test_a_diffusion_models_network_transfers_to_none_of_ours():
    """Its weights have the names of VelocityUNet's and mean something else."""
    ours = UNet(channels=(8, 16)).build((1, 8, 8), None)
    theirs = Diffusers(dict(ours.unet.config)).build((1, 8, 8), None)
    own = copied(ours)
    assert own.keys() == theirs.state_dict().keys()
    assert not transfer(ours, theirs)
    assert all(torch.equal(value, own[key]) for key, value in ours.state_dict().items())
