"""Random views of a batch: the augmentation that CoTTA and RoTTA share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as V

from cil.errors import ConfigError


@torch.no_grad()
def random_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colours, an affine map, blur, a flip and noise, drawn once for the whole batch but for the noise.

    In order: clip; brightness 0.6 to 1.4, contrast 0.7 to 1.3, saturation 0.5 to 1.5, hue +-0.06 of a turn and gamma
    0.7 to 1.3, in random order; padding by half a side with the values of the edge; rotation +-15 degrees, translation
    by at most 1/16 of the padded side, scale 0.9 to 1.1, bilinear; Gaussian blur 5x5, sigma 0.001 to 0.5 pixels; the
    centre at the old size; flip with probability 1/2; Gaussian noise of 0.005; clip.

    Args:
        images: (N, C, H, W) float in [0, 1]; C is 1 or 3, and grey images have neither saturation nor hue.
        generator: On the CPU; the noise is drawn on the device of the images, keyed by it.

    Returns:
        (N, C, H, W), without gradient.

    Raises:
        ConfigError: for another number of channels.

    Source:
        Wang et al., CoTTA, CVPR 2022, section 3.2 and its supplement; ranges, and one draw a batch, as in the authors'
        code.
    """
    if images.shape[1] not in (1, 3):
        raise ConfigError(f"random views are of grey or colour images, not of {images.shape[1]} channels; see stream")
    height, width = images.shape[2:]
    draws: list[float] = torch.rand(11, generator=generator).tolist()
    order = torch.randperm(5, generator=generator).tolist()
    noise = torch.randn(
        images.shape, generator=generator_on(generator, images.device), device=images.device, dtype=images.dtype
    )

    def between(place: int, low: float, high: float) -> float:
        return low + (high - low) * draws[place]

    colour = (
        lambda x: V.adjust_brightness(x, between(0, 0.6, 1.4)),
        lambda x: V.adjust_contrast(x, between(1, 0.7, 1.3)),
        lambda x: V.adjust_saturation(x, between(2, 0.5, 1.5)),
        lambda x: V.adjust_hue(x, between(3, -0.06, 0.06)),
        lambda x: V.adjust_gamma(x, between(4, 0.7, 1.3)),
    )
    x: Tensor = images.clamp(0, 1)
    for index in order:
        x = colour[index](x)
    x = F.pad(x, (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    moved = [round(between(place, -1, 1) * side / 16) for place, side in ((6, x.shape[3]), (7, x.shape[2]))]
    x = V.affine(
        x, between(5, -15, 15), moved, between(8, 0.9, 1.1), [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    x = V.gaussian_blur(x, [5, 5], [between(9, 0.001, 0.5)])
    x = V.center_crop(x, [height, width])
    x = x.flip(3) if draws[10] < 0.5 else x
    return (x + 0.005 * noise).clamp(0, 1)


def generator_on(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on a device, keyed by one on the CPU, which is returned itself for CPU and meta tensors."""
    if device.type in ("cpu", "meta"):
        return generator
    return torch.Generator(device=device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
