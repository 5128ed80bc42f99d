"""Random colours, blur and grey, drawn for each image: the augmentation of EcoTTA's warm-up."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.299, 0.587, 0.114)


@torch.no_grad()
def colour_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with probability 0.4 in other colours, 0.2 blurred, 0.1 grey.

    Colours: brightness, contrast and saturation by factors of 0.6 to 1.4, hue by at most 0.1 of a turn, in random
    order. Blur: Gaussian, 3x3, sigma 0.1 to 2 pixels.

    Args:
        images: (N, C, H, W) float in [0, 1]; only colour images (C = 3) have saturation, hue and grey.
        generator: On the CPU.

    Returns:
        (N, C, H, W) float in [0, 1], a new tensor.

    Source:
        Song et al., EcoTTA, CVPR 2023, as in its public reimplementation.
    """
    count, device = len(images), images.device
    chosen, draws = torch.rand(3, count, generator=generator), torch.rand(5, count, generator=generator)
    order = torch.rand(count, 4, generator=generator).argsort(1)
    factors = [0.6 + 0.8 * draws[0], 0.6 + 0.8 * draws[1], 0.6 + 0.8 * draws[2], 0.2 * draws[3] - 0.1]
    changes = (change_brightness, change_contrast, change_saturation, change_hue)
    views = images.clone()

    def change(rows: Tensor, how: Callable[..., Tensor], *values: Tensor) -> None:
        if bool(rows.any()):
            index = rows.nonzero()[:, 0].to(device)
            views[index] = how(views[index], *(value[rows].to(images).view(-1, 1, 1, 1) for value in values))

    for place in range(4):
        for number, how in enumerate(changes):
            if number < 2 or images.shape[1] == 3:
                change((chosen[0] < 0.4) & (order[:, place] == number), how, factors[number])
    change(chosen[1] < 0.2, blur, 0.1 + 1.9 * draws[4])
    if images.shape[1] == 3:
        change(chosen[2] < 0.1, lambda x: grey(x).expand_as(x))
    return views


def grey(images: Tensor) -> Tensor:
    """Luma, (N, 1, H, W); an image of one channel stays as it is."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * torch.tensor(_GREY).to(images).view(1, 3, 1, 1)).sum(1, keepdim=True)


def change_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by a factor."""
    return (images * factor).clamp(0, 1)


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to the mean luma of the image."""
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    return (factor * images + (1 - factor) * mean).clamp(0, 1)


def change_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to the grey image."""
    return (factor * images + (1 - factor) * grey(images)).clamp(0, 1)


def change_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue, in HSV, by a share of a turn."""
    red, green, blue = images.split(1, dim=1)
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - low
    safe = chroma.where(chroma > 0, torch.ones_like(chroma))
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    place = (sixth + 6 * turns + torch.tensor([5.0, 3.0, 1.0]).to(images).view(1, 3, 1, 1)) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of 3x3 pixels, normalised; the border is mirrored."""
    side = torch.exp(-0.5 / sigma.square())
    centre, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    x = F.pad(images, (1, 1, 1, 1), mode="reflect")
    x = centre * x[..., 1:-1] + side * (x[..., :-2] + x[..., 2:])
    return centre * x[..., 1:-1, :] + side * (x[..., :-2, :] + x[..., 2:, :])
