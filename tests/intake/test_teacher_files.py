"""Folders of diffusion models: every layout is read, and what is no teacher is refused in one line."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from diffusers_teachers import SETTINGS, noise, saved, unet
from fmcore.disk.files import ArtifactError
from fmcore.intake.teachers import read_teacher, teacher_files
from fmcore.models.foreign import WEIGHTS


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


def beside_a_model_that_is_not_averaged(folder):
    (folder / "unet").rename(folder / "unet_ema")
    unet(seed=5).save_pretrained(folder / "unet")
    return folder


LAYOUTS = [lambda folder: folder, flat, flat_with_scheduler, lambda folder: folder / "unet"]


@pytest.mark.parametrize("layout", [*LAYOUTS, beside_a_model_that_is_not_averaged])
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


def variant_only(folder):
    path = folder / "unet" / WEIGHTS
    path.rename(path.with_suffix(".fp16.safetensors"))


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
    "only a pickle": (pickle_only, f"unet/{WEIGHTS}", r"is missing.*\.bin, a pickle, which is not read.*convert"),
    "only a variant": (variant_only, f"unet/{WEIGHTS}", r"is missing.*there is .*\.fp16\.safetensors: copy it"),
    "thresholding": (schedule_says(thresholding=True), SCHEDULE, "thresholding: expected false"),
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
