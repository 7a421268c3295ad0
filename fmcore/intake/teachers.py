"""Existing diffusion models as teachers: a network in its own convention, from which a rectified flow can start.

A DDPM read as an ODE is a flow on a variance preserving path, an EDM denoiser one on the variance exploding path.
`fmcore.flow.fields.network_field` carries either to the linear path. There an Euler step is exactly a DDIM step
(Song et al., arXiv:2010.02502, eq. 12): both join the same predicted noise and data at the next noise level.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fmcore.disk.files import ArtifactError, read_json, read_tensors
from fmcore.flow.errors import one_line
from fmcore.flow.fields import Convention, VelocityField, reparametrised
from fmcore.flow.paths import VE, Discrete, Prediction, coefficients
from fmcore.models.foreign import WEIGHTS, fill, need_files
from fmcore.models.networks import Diffusers, DiffusersUNet

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "data", "v_prediction": "v"}


def edm_field(
    denoiser: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> VelocityField:
    """The velocity on the linear path of a denoiser D(x; sigma) (Karras et al., arXiv:2206.00364, eq. 1).

    Main arguments:
        denoiser: maps x_1 + sigma n (B, *D), sigma (B,) and a class (B,) or None to the expected data (B, *D).
        sigma_min, sigma_max: the noise levels it was trained on.
    """
    path = VE(sigma_min, sigma_max)

    def predicts_data(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return denoiser(x, coefficients(path, t, t).s, label)

    return reparametrised(predicts_data, Convention(path, "data"))


@dataclass(frozen=True)
class Teacher:
    """A diffusion model that was read from disk; see `fmcore.models.folder.Trained` for the fields."""

    network: nn.Module
    network_config: Diffusers
    shape: tuple[int, ...]
    num_classes: int | None
    convention: Convention


def teacher_files(folder: str | Path) -> tuple[Path, Path, Path]:
    """Where a diffusers folder keeps the network's config, its weights, and the noise schedule.

    Raises:
        ArtifactError: that names the file that is missing and where it was looked for.
    """
    top = Path(folder)
    parts = [top / name for name in ("unet_ema", "unet")]  # the averaged weights are those that one samples with
    unet = next((part for part in parts if part.is_dir()), top)
    places = [top / "scheduler", top, unet]
    if top.name in ("unet", "unet_ema"):  # the network's own folder was named
        places.append(top.parent / "scheduler")
    schedules = [place / "scheduler_config.json" for place in places]
    schedule = next((path for path in schedules if path.is_file()), None)
    if schedule is None:
        looked = " or ".join(map(str, dict.fromkeys(schedules))) if top.is_dir() else "there is no such folder"
        raise ArtifactError(f"{folder}: expected a diffusers model with a scheduler_config.json ({looked})")
    found = (unet / "config.json", unet / WEIGHTS, schedule)
    need_files(found, "UNet2DModel")
    return found


def read_teacher(folder: str | Path) -> Teacher:
    """A diffusers UNet2DModel with its noise schedule: DDPM-style, or EDM's.

    Nothing is fetched and no pickle is read: the weights must be safetensors. Predicted data is cut as the
    schedule's `clip_sample` says. That matters for noise prediction: at t = 0, where a is 0.006, an error of the
    noise is one 150 times as large of the data.

    Raises:
        ArtifactError: if a file is missing, or describes a model of another kind.
    """
    paths = teacher_files(folder)
    config, schedule = read_json(paths[0]), read_json(paths[2])
    if config.get("_class_name") != "UNet2DModel":
        raise ArtifactError(f"{paths[0]}: expected a UNet2DModel, got {config.get('_class_name')}")
    channels, side = config.get("in_channels", 3), config.get("sample_size")
    sides = (side, side) if isinstance(side, int) else tuple(side) if isinstance(side, list) else ()
    for wanted, fine in {
        "a sample_size": len(sides) == 2,
        "as many out_channels as in_channels (no learnt variance)": config.get("out_channels", 3) == channels,
        "no class_embed_type but that of num_class_embeds": config.get("class_embed_type") is None,
        "time_embedding_type positional": config.get("time_embedding_type", "positional") == "positional",
    }.items():
        if not fine:
            raise ArtifactError(f"{paths[0]}: expected {wanted}")
    try:
        network_config, convention = _convention(config, schedule)
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"{paths[2]}: {error}") from None
    try:
        network = network_config.build((channels, *sides), None)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{paths[0]}: {one_line(error)}") from None
    assert isinstance(network, DiffusersUNet)
    fill(network.unet, read_tensors(paths[1]), paths[1])
    return Teacher(network.eval(), network_config, (channels, *sides), config.get("num_class_embeds"), convention)


def _convention(config: dict[str, Any], schedule: dict[str, Any]) -> tuple[Diffusers, Convention]:
    kind, predicts = str(schedule.get("_class_name")), schedule.get("prediction_type", "epsilon")
    if predicts not in _PREDICTIONS:
        raise ValueError(f"prediction_type: expected one of {', '.join(_PREDICTIONS)}, got {predicts!r}")
    if kind.startswith("EDM"):
        low, high = schedule.get("sigma_min", 0.002), schedule.get("sigma_max", 80.0)
        if predicts == "sample":
            raise ValueError("prediction_type: EDM's are epsilon or v_prediction, got sample")
        sign = 1.0 if predicts == "epsilon" else -1.0
        edm = (float(low), float(high), float(schedule.get("sigma_data", 0.5)), sign)
        return Diffusers(config, edm=edm), Convention(VE(low, high), "data")
    if "beta_schedule" not in schedule and "trained_betas" not in schedule:
        raise ValueError(f"expected the schedule of a DDPM or an EDM model, got {kind}")
    from diffusers import DDPMScheduler

    keys = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = DDPMScheduler(**{key: schedule[key] for key in keys if key in schedule}).alphas_cumprod
    if table[-1] <= 0 and predicts == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr: expected false; where no signal is left, noise says nothing of data"
        )
    if schedule.get("thresholding"):
        raise ValueError("thresholding: expected false; where data is cut depends on the sample, which is no flow")
    clips = schedule.get("clip_sample", kind in ("DDPMScheduler", "DDIMScheduler"))
    clip = schedule.get("clip_sample_range", 1.0) if clips else None
    path = Discrete(tuple(table.double().clamp(min=2.0**-30).tolist()))
    return Diffusers(config, timesteps=len(table)), Convention(path, _PREDICTIONS[predicts], clip)
