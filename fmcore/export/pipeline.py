"""A flow for diffusers: a UNet2DModel whose output is the velocity from noise at t = 0 to images at t = 1.

It lies beside the models that need it: those with classes, with patches of pixels as channels, or of latents.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class FlowPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Equal Euler steps of a flow.

    Main arguments:
        unet: takes the timestep 1000 t.
        scheduler: with `invert_sigmas`, so that its sigma is t.
        steps: those that are taken unless others are asked for.
        patch: side of the squares of pixels that are the channels of one position of the U-Net.
        num_classes: None for a model without classes.
        vae: decodes latents, whose moments stand in its config; None for a model that makes images itself.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        steps: int = 1,
        patch: int = 1,
        num_classes: int | None = None,
        vae: AutoencoderKL | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(steps=steps, patch=patch, num_classes=num_classes)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | list[int] | Tensor | None = None,
        *,
        num_inference_steps: int | None = None,
        generator: Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[object]:
        """Draws images.

        Args:
            batch_size: how many; not needed where there are `latents` or a list of labels.
            class_labels: one for all, or one each; drawn uniformly if None.
            num_inference_steps: the pipeline's own if None.
            latents: the noise, (N, C, H, W) standard normal, of the U-Net's shape before patches.
            output_type: `pil`, `np` or `pt`; the latter two lie in [0, 1].
        """
        device, patch, size = self._execution_device, self.config.patch, self.unet.config.sample_size
        if latents is not None:
            batch_size = len(latents)
        elif class_labels is not None and not isinstance(class_labels, int):
            batch_size = len(class_labels)
        labels = self._labels(batch_size, class_labels, generator)
        if latents is None:
            height, width = (size, size) if isinstance(size, int) else size
            shape = (batch_size, self.unet.config.in_channels // patch**2, height * patch, width * patch)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        x = pixel_unshuffle(latents.to(device), patch)
        steps = num_inference_steps or self.config.steps
        self.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        for t in self.progress_bar(self.scheduler.timesteps):
            v = self.unet(x, t, class_labels=labels, return_dict=False)[0]
            x = self.scheduler.step(v, t, x, return_dict=False)[0]
        x = pixel_shuffle(x, patch)
        if self.vae is not None:
            known = self.vae.config
            mean, std = (
                torch.tensor(of).to(x).view(1, -1, 1, 1) for of in (known.latents_mean, known.latents_std)
            )
            x = self.vae.decode(x * std + mean, return_dict=False)[0]
        found = (x / 2 + 0.5).clamp(0, 1)
        images = found if output_type == "pt" else found.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(
        self, count: int, labels: int | list[int] | Tensor | None, generator: Generator | None
    ) -> Tensor | None:
        known = self.config.num_classes
        if known is None:
            if labels is not None:
                raise ValueError(f"this model was trained without classes, got class_labels {labels}")
            return None
        if labels is None:
            place = "cpu" if generator is None else generator.device
            found = torch.randint(known, (count,), generator=generator, device=place)
        else:
            found = torch.as_tensor(labels).reshape(-1)
            found = found.expand(count) if len(found) == 1 else found
        if len(found) != count or not ((found >= 0) & (found < known)).all():
            raise ValueError(f"class_labels: expected {count} in 0..{known - 1}, got {found.tolist()}")
        return found.to(self._execution_device)
