"""Augmentation of whole batches on the device they live on; every image draws its own crop, flip and brightness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.samples import to_float
from cil.errors import ConfigError, ShapeError

BoundAugment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Augment:
    """Random crop of the zero-padded image, horizontal flip, brightness. Without arguments it changes nothing.

    Args:
        crop_padding: Zero pixels added at each side before a crop of the old size: (2 p + 1)^2 equally likely places.
        flip: Mirror left and right with probability 1/2.
        brightness: b multiplies an image by one factor from U[max(0, 1 - b), 1 + b]; what exceeds 1 becomes 1.

    Raises:
        ConfigError: where an argument is negative or no number.

    Source:
        CIFAR recipe of the survey of Zhou et al. 2024: ``Augment(crop_padding=4, flip=True, brightness=63 / 255)``.
        Departure: brightness acts on floats, so nothing is rounded to whole grey levels.
    """

    crop_padding: int = 0
    flip: bool = False
    brightness: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.crop_padding, bool) or not isinstance(self.crop_padding, int) or self.crop_padding < 0:
            raise ConfigError(f"augment.crop_padding is {self.crop_padding!r}; it must be a whole number >= 0 (pixels)")
        if not isinstance(self.flip, bool):
            raise ConfigError(f"augment.flip is {self.flip!r}; it must be true or false")
        if not isinstance(self.brightness, int | float) or not 0 <= self.brightness < float("inf"):
            raise ConfigError(f"augment.brightness is {self.brightness!r}; it must be a number >= 0, as in 63/255 = 0.247")

    @property
    def is_identity(self) -> bool:
        """Whether images stay as they are."""
        return self == Augment()

    def bind(self, pixels: Tensor) -> BoundAugment:
        """Prepare a data set once, so that each batch is one gather.

        Args:
            pixels: (N, C, H, W) uint8 on any device.

        Returns:
            A function of ``rows`` (n,) int64 and a generator that gives (n, C, H, W) float in [0, 1], channels last in
            memory, on the device of ``pixels``. All draws of a call come from the generator, so the same generator
            state gives the same images.

        Raises:
            ShapeError: where ``pixels`` are not uint8 (N, C, H, W).
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ShapeError(f"pixels must be uint8 (N, C, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
        if self.is_identity:
            return lambda rows, generator: to_float(pixels[rows.to(pixels.device)])
        channels, height, width = pixels.shape[1:]
        packed = _packed(F.pad(pixels, (self.crop_padding,) * 4)) if self.crop_padding else _packed(pixels)
        device, padded_height, padded_width = pixels.device, *packed.shape[1:3]
        flat = packed.flatten(0, 2)  # one entry a pixel
        down = torch.arange(height, device=device) * padded_width
        across = torch.arange(width, device=device)

        def augmented(rows: Tensor, generator: torch.Generator) -> Tensor:
            shift, mirror, factor = (draw.to(device) for draw in self._draw(len(rows), generator))
            columns = torch.where(mirror[:, None], across.flip(0), across)
            corner = (rows.to(device) * padded_height + shift[0]) * padded_width + shift[1]
            places = (corner[:, None] + down)[:, :, None] + columns[:, None, :]  # (n, H, W)
            taken = flat[places.flatten()]
            if taken.dtype == torch.int32:  # four bytes: red, green, blue, nothing
                taken = taken.view(torch.uint8).view(-1, 4)[:, :channels]
            images = taken.reshape(len(rows), height, width, channels).to(torch.float32)
            if self.brightness:
                images.mul_(factor[:, None, None, None] / 255).clamp_(max=1)
            else:
                images.div_(255)
            return images.permute(0, 3, 1, 2)

        return augmented

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Augment one batch: (n, C, H, W) uint8 to float in [0, 1], with the draws that ``bind`` would make."""
        return self.bind(pixels)(torch.arange(len(pixels), device=pixels.device), generator)

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Corner (2, n) of the crop, mirror (n,) bool, brightness factor (n,); always the same number of draws."""
        device = generator.device
        shift = torch.randint(2 * self.crop_padding + 1, (2, n), generator=generator, device=device)
        mirror = torch.rand(n, generator=generator, device=device) < (0.5 if self.flip else 0.0)
        low, high = max(0.0, 1 - self.brightness), 1 + self.brightness
        return shift, mirror, torch.rand(n, generator=generator, device=device) * (high - low) + low


def _packed(pixels: Tensor) -> Tensor:
    """(N, C, H, W) uint8 to (N, H, W) int32 for three channels, else (N, H, W, C) uint8: one entry a pixel."""
    if pixels.shape[1] != 3:
        return pixels.permute(0, 2, 3, 1).contiguous()
    return F.pad(pixels, (0, 0, 0, 0, 0, 1)).permute(0, 2, 3, 1).contiguous().view(torch.int32)[..., 0]
