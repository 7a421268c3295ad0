"""LPIPS against torch-fidelity's, the reflow loss built on it, and files that are not its weights.

The published weights cannot be had here: random ones under the published names and shapes stand for them.
"""

import os
import re
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch_fidelity.sample_similarity_lpips as fidelity
from torch.nn.functional import interpolate
from torchvision.models import vgg16

from fmcore.flow.perceptual import MIN_SIZE, Perceptual, load_lpips, pseudo_huber

CHANNELS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def weights():
    """(backbone, linear) as published: names, shapes, gaps in the numbering."""
    g = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {f"features.{name}": value.shape for name, value in vgg16().features.state_dict().items()}
    backbone = {}
    for name, shape in shapes.items():
        gain = (2 / shape[1:].numel()) ** 0.5 if name.endswith("weight") else 0.05
        backbone[name] = gain * torch.randn(shape, generator=g)
    backbone["classifier.6.bias"] = torch.randn(1000, generator=g)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=g) for i, c in enumerate(CHANNELS)}
    return backbone, linear


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    paths = str(folder / "vgg16-397923af.pth"), str(folder / "vgg.pth")
    for path, value in zip(paths, weights, strict=True):
        torch.save(value, path, _use_new_zipfile_serialization=False)  # as the published files are
    yield paths
    load_lpips.cache_clear()


@pytest.fixture(scope="module")
def lpips(files):
    return load_lpips(*files)


@pytest.fixture(scope="module")
def oracle(weights):
    backbone, linear = weights
    with torch.device("meta"):
        features = vgg16().features
    features.load_state_dict(
        {k.removeprefix("features."): v for k, v in backbone.items() if k.startswith("features")}, assign=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: linear)
        patch.setattr(fidelity, "torchvision_load_pretrained_vgg16", lambda: SimpleNamespace(features=features))
        return fidelity.SampleSimilarityLPIPS("oracle")


def images(seed, channels=3, side=32, count=2):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("side", [16, 32, 35])
def test_lpips_is_torch_fidelitys(lpips, oracle, side):
    a, b = images(0, side=side), images(1, side=side)
    near = a + 0.02 * b
    for other in (b, near):
        expected = oracle((a + 1) * 127.5, (other + 1) * 127.5)
        torch.testing.assert_close(lpips(a, other), expected, rtol=1e-4, atol=0)


def test_lpips_of_grey_and_of_small_images(lpips, oracle):
    a, b = images(0, channels=1), images(1, channels=1)
    rgb = [(interpolate(x.expand(-1, 3, -1, -1), (48, 48), mode="bilinear") + 1) * 127.5 for x in (a, b)]
    torch.testing.assert_close(lpips(a, b, size=48), oracle(*rgb), rtol=1e-4, atol=0)
    torch.testing.assert_close(lpips(a, b, size=32), lpips(a, b))
    tiny = images(0, side=8)
    assert lpips(tiny, -tiny, size=16).shape == (2,)


def test_lpips_is_a_symmetric_distance_for_each_sample(lpips):
    a, b = images(0), images(1)
    d = lpips(a, b)
    assert d.shape == (2,)
    assert (d > 0).all()
    assert torch.equal(lpips(a, a), torch.zeros(2))
    torch.testing.assert_close(d, lpips(b, a))
    torch.testing.assert_close(d, torch.cat([lpips(a[:1], b[:1]), lpips(a[1:], b[1:])]))


@pytest.mark.parametrize("flat", [False, True])
def test_gradient_reaches_the_image_and_no_weight(lpips, flat):
    a = torch.zeros(2, 3, 32, 32) if flat else images(0)
    a.requires_grad_()
    lpips(a, images(1)).sum().backward()
    assert a.grad.isfinite().all()
    assert a.grad.flatten(1).abs().sum(1).min() > 0
    assert not any(p.requires_grad for p in lpips.parameters())
    assert not lpips.training


def test_gradient_is_finite_where_all_channels_are_zero(weights, tmp_path):
    backbone = {name: -value.abs() if name == "features.2.bias" else value for name, value in weights[0].items()}
    backbone["features.2.weight"] = -weights[0]["features.2.weight"].abs()  # after ReLU nothing is left
    torch.save(backbone, tmp_path / "dead.pth")
    torch.save(weights[1], tmp_path / "vgg.pth")
    a = images(0).requires_grad_()
    d = load_lpips(str(tmp_path / "dead.pth"), str(tmp_path / "vgg.pth"))(a, images(1))
    d.sum().backward()
    assert torch.equal(d, torch.zeros(2))
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_gradient_is_the_slope(lpips):
    a, b = images(0, side=16, count=1).requires_grad_(), images(1, side=16, count=1)
    lpips(a, b).sum().backward()
    direction = a.grad / a.grad.norm()
    with torch.no_grad():
        rise = lpips(a + 1e-2 * direction, b) - lpips(a - 1e-2 * direction, b)
    assert rise.item() / 2e-2 == pytest.approx(a.grad.norm().item(), rel=0.02)


def test_lpips_ignores_autocast(lpips):
    a, b = images(0), images(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d = lpips(a, b)
    assert d.dtype == torch.float32
    assert torch.equal(d, lpips(a, b))
    assert torch.equal(lpips(a.double(), b.double()), d)


def test_weights_are_read_once_and_draw_no_random_numbers(files, lpips):
    assert load_lpips(*files) is lpips
    state = torch.get_rng_state()
    load_lpips.cache_clear()
    with torch.inference_mode():
        again = load_lpips(*files)
    assert torch.equal(torch.get_rng_state(), state)
    a = images(0).requires_grad_()
    again(a, images(1)).sum().backward()
    assert again is not lpips


def test_safetensors_are_read_too(weights, lpips, tmp_path):
    paths = [str(tmp_path / name) for name in ("backbone.safetensors", "linear.safetensors")]
    for path, value in zip(paths, weights, strict=True):
        safetensors.torch.save_file(value, path)
    assert torch.equal(load_lpips(*paths)(images(0), images(1)), lpips(images(0), images(1)))


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 2, 32, 32), 64), ((2, 3, 15, 32), None), ((2, 3, 32, 15), None), ((2, 3, 32, 32), 15)]
)
def test_lpips_refuses_what_it_cannot_see(lpips, shape, size):
    with pytest.raises(ValueError, match=re.escape(f"of 16 or more pixels a side, got {shape} and size {size}")):
        lpips(torch.zeros(shape), torch.zeros(shape), size)


# --- the loss


def problem(t):
    """x0, x1, t, x_t, u_t on the linear path, and a wrong v."""
    x0, x1, delta = images(2), images(3), 0.3 * images(4)
    t = torch.as_tensor(t, dtype=torch.float32).expand(2)
    s = t[:, None, None, None]
    return x0, x1, t, (1 - s) * x0 + s * x1, x1 - x0, x1 - x0 + delta


def test_loss_vanishes_only_for_the_true_velocity(files):
    *_, t, x_t, u_t, v = problem([0.25, 0.75])
    for huber in (True, False):
        loss = Perceptual(*files, size=32, huber=huber)
        assert torch.equal(loss(u_t, u_t, x_t, t), torch.zeros(2))
        assert (loss(v, u_t, x_t, t) > 0).all()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_at_noise_the_loss_is_lpips_of_the_one_step_sample(files, lpips, size):
    """And at data nothing is left of it: an error of the velocity moves x1_hat by 1 - t of it."""
    x0, x1, t, x_t, u_t, v = problem(0.0)
    loss = Perceptual(*files, size=size, huber=False)
    at_noise = loss(v, u_t, x_t, t)
    torch.testing.assert_close(at_noise, lpips(x0 + v, x1, size), rtol=1e-4, atol=0)
    *_, t, x_t, u_t, v = problem(1 - 1e-3)
    assert (loss(v, u_t, x_t, t) < 1e-3 * at_noise).all()


def test_between_the_loss_is_lpips_of_where_the_velocity_leads(files, lpips):
    _, x1, t, x_t, u_t, v = problem(0.75)
    expected = lpips(x1 + 0.25 * (v - u_t), x1)
    torch.testing.assert_close(
        Perceptual(*files, size=32, huber=False)(v, u_t, x_t, t), expected, rtol=1e-3, atol=0
    )


def test_the_weights_are_those_of_rows_e_and_f(files):
    *_, t, x_t, u_t, v = problem([0.25, 0.75])
    plain = Perceptual(*files, size=32, huber=False)(v, u_t, x_t, t)
    divided = Perceptual(*files, size=32, huber=False, over_noise=True)(v, u_t, x_t, t)
    assert torch.equal(divided, plain / torch.tensor([0.75, 0.25]))
    h = torch.tensor([0.25, 0.75]) * pseudo_huber(v, u_t, 0.1)
    for over_noise, part in ((False, plain), (True, divided)):
        loss = Perceptual(*files, size=32, over_noise=over_noise, scale=0.1)
        torch.testing.assert_close(loss(v, u_t, x_t, t), part + h, rtol=1e-6, atol=0)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_loss_and_gradient_are_finite_at_both_ends_of_time(files, t):
    *_, t, x_t, u_t, v = problem(t)
    v.requires_grad_()
    loss = Perceptual(*files, size=32, over_noise=True)(v, u_t, x_t, t)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert v.grad.isfinite().all()
    assert v.grad.abs().max() > 0


def test_descending_the_loss_finds_the_velocity(files):
    *_, t, x_t, u_t, v = problem([0.0, 0.5])
    v.requires_grad_()
    loss, optimizer = Perceptual(*files, size=32), torch.optim.Adam([v], lr=0.03)
    values = []
    for _ in range(6):
        value = loss(v, u_t, x_t, t).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("dims", [1, 48])
def test_pseudo_huber_by_hand(dims):
    """With |a - b| = sqrt(3) c the root is 2 c, so the distance is c / D = scale whatever D is."""
    gap = torch.full((1, dims), 3**0.5 * 0.01 * dims**0.5, dtype=torch.float64)
    assert pseudo_huber(gap, torch.zeros_like(gap), 0.01).item() == pytest.approx(0.01)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"size": MIN_SIZE - 1}])
def test_loss_refuses_settings_without_meaning(wrong):
    with pytest.raises(ValueError, match=r"lpips needs scale > 0 and size >= 16, got .*(0\.0|15)"):
        Perceptual("a.pth", "b.pth", **wrong)


@pytest.mark.gpu
def test_loss_on_a_gpu_repeats_exactly_and_is_the_cpus(files):
    def value_and_gradient(device):
        *_, t, x_t, u_t, v = (x.to(device) for x in problem([0.25, 0.75]))
        v.requires_grad_()
        loss = Perceptual(*files)(v, u_t, x_t, t)
        loss.sum().backward()
        return loss.detach(), v.grad

    once, twice = value_and_gradient("cuda"), value_and_gradient("cuda")
    assert all(torch.equal(x, y) for x, y in zip(once, twice, strict=True))
    torch.testing.assert_close(once[0].cpu(), value_and_gradient("cpu")[0], rtol=1e-2, atol=0)


# --- files that are not the weights


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def refused(*files):
    with pytest.raises(ValueError, match=r"^lpips") as caught:
        load_lpips(*map(str, files))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(files))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def test_missing_files_are_named(files, tmp_path):
    gone = tmp_path / "gone.pth"
    message = refused(gone, files[1])
    assert message.startswith(f"lpips backbone: {str(gone)!r} is no file, and nothing is downloaded for you")
    assert "expected torchvision's vgg16-397923af.pth" in message
    message = refused(files[0], gone)
    assert message.startswith(f"lpips linear: {str(gone)!r} is no file")
    assert "vgg.pth (in richzhang/PerceptualSimilarity) or torch-fidelity's weights-vgg16-lpips.pth" in message
    assert "is no file" in refused(tmp_path, files[1])
    assert "'' is no file" in refused("", files[1])


@pytest.mark.parametrize("name", ["vgg.pt", "vgg.bin", "vgg.pkl", "vgg"])
def test_other_kinds_of_file_are_not_opened(files, tmp_path, name):
    torch.save(Code(), tmp_path / name)
    assert "is neither .pth nor .safetensors" in refused(files[0], tmp_path / name)


def test_swapped_files_are_told_apart(files):
    message = refused(files[1], files[0])
    assert message.startswith(
        f"lpips backbone: {files[1]!r} differs in 26 of 26 tensors: features.0.weight is nothing"
    )
    assert "(its first names: lin0.model.1.weight, lin1.model.1.weight), not (64, 3, 3, 3)" in message
    message = refused(files[0], files[0])
    assert message.startswith(
        f"lpips linear: {files[0]!r} differs in 5 of 5 tensors: lin0.model.1.weight is nothing"
    )
    assert "features.0.weight" in message


def test_wrong_names_and_shapes_are_named(weights, files, tmp_path):
    linear, path = weights[1], tmp_path / "vgg.pth"
    torch.save({k: v for k, v in linear.items() if "lin3" not in k}, path)
    assert "differs in 1 of 5 tensors: lin3.model.1.weight is nothing" in refused(files[0], path)
    torch.save(linear | {"lin0.model.1.weight": torch.zeros(1, 32, 1, 1)}, path)
    assert "lin0.model.1.weight is (1, 32, 1, 1), not (1, 64, 1, 1)" in refused(files[0], path)
    torch.save({f"lin{i}.model.1.weight": torch.zeros(1, 64, 1, 1) for i in range(5)}, path)  # AlexNet's look so
    assert "differs in 4 of 5 tensors: lin1.model.1.weight" in refused(files[0], path)
    torch.save({}, path)
    assert "differs in 5 of 5 tensors" in refused(files[0], path)


@pytest.mark.parametrize(
    "value", [[torch.zeros(1)], torch.zeros(3), {"state_dict": {"a": torch.zeros(1)}}, {"a": 1}]
)
def test_what_is_no_dictionary_of_tensors_is_refused(files, tmp_path, value):
    torch.save(value, tmp_path / "vgg.pth")
    assert "is not a file of plain tensors" in refused(files[0], tmp_path / "vgg.pth")


@pytest.mark.parametrize("name", ["vgg.pth", "vgg.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04"])
def test_damaged_files_are_refused(files, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert f"{name}' is not a file of plain tensors" in refused(files[0], tmp_path / name)


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_pickle_never_runs(weights, files, tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save(weights[1] | {"extra": Code()}, "vgg.pth", _use_new_zipfile_serialization=zipped)
    message = refused(files[0], "vgg.pth")
    assert "is not a file of plain tensors (UnpicklingError)" in message
    assert "weights_only" not in message
    assert not (tmp_path / "ran").exists()
    torch.load("vgg.pth", weights_only=False)  # the code was real
    assert (tmp_path / "ran").exists()
