"""Augmentation of whole batches on the device they live on; every image has draws of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from cil.data.crops import crop_resized
from cil.data.file_store import MOST_SIZE
from cil.data.policies import DRAWS, POLICIES, apply_policy, cut_hole
from cil.data.samples import channels_last_floats, to_float
from cil.errors import ConfigError, ShapeError

BoundAugment = Callable[[Tensor, torch.Generator], Tensor]
Gather = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows, corners of crops, mirrored ones to floats in [0, 255]


@dataclass(frozen=True)
class Augment:
    """Random crop of the zero-padded image, horizontal flip, brightness, then a policy of image operations and a hole.

    Without arguments it changes nothing.

    Args:
        crop_padding: Zero pixels added at each side before a crop of the old size: (2 p + 1)^2 equally likely places.
        flip: Mirror left and right with probability 1/2.
        brightness: b multiplies an image by one factor from U[max(0, 1 - b), 1 + b]; what exceeds 1 becomes 1.
        resized_crop: First a random part (see ``crop_box``), resized to the whole: of files while they are decoded, of
            stored images (exemplars of a stream of files) as a batch.
        crop_area: Least share of the area that such a part has.
        crop_size: Side in pixels that such a part of a stored image is resized to, as a network with a larger input
            wants it (224); null: the old size. Images of files have ``stream.image_size``.
        policy: ``autoaugment``, ``randaugment`` or ``rand_m9``, on images rounded to whole grey levels; see
            ``cil.data.policies``.
        cutout: Side in pixels of a square of zeros around a random pixel; 0: none.

    Raises:
        ConfigError: where an argument is negative or no number, or there is no such policy; where images have neither
            one channel nor three, which policies need.

    Source: CIFAR recipe of the survey of Zhou et al. 2024: ``Augment(crop_padding=4, flip=True, brightness=63 / 255)``.
    Departure: brightness acts on floats, so nothing is rounded to whole grey levels.
    """

    crop_padding: int = 0
    flip: bool = False
    brightness: float = 0.0
    resized_crop: bool = False
    crop_area: float = 0.08
    crop_size: int | None = None
    policy: str | None = None
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"stream.augment.{name} is {value!r}; it must be a whole number >= 0 (pixels)")
        if self.policy not in (None, *POLICIES):
            raise ConfigError(f"stream.augment.policy is {self.policy!r}; allowed: null, {', '.join(POLICIES)}")
        for name in ("flip", "resized_crop"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"stream.augment.{name} is {getattr(self, name)!r}; it must be true or false")
        if not isinstance(self.crop_area, int | float) or not 0 < self.crop_area <= 1:
            raise ConfigError(f"stream.augment.crop_area is {self.crop_area!r}; it must be a share above 0, at most 1")
        size = self.crop_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST_SIZE):
            raise ConfigError(
                f"stream.augment.crop_size is {size!r}; it must be a whole number of 1 to {MOST_SIZE} pixels, or null"
            )
        if (size is not None or self.crop_area != 0.08) and not self.resized_crop:
            raise ConfigError("stream.augment.crop_area and crop_size are of resized_crop; set that to true")
        if not isinstance(self.brightness, int | float) or not 0 <= self.brightness < float("inf"):
            raise ConfigError(
                f"stream.augment.brightness is {self.brightness!r}; it must be a number >= 0 (63/255 = 0.247)"
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse what would leave black images of this size: a hole larger than they are, or as much padding."""
        least = min(height, width)
        if least == 1:  # stands in for stored features
            return
        for name, most in (("crop_padding", least - 1), ("cutout", least)):
            if getattr(self, name) > most:
                raise ConfigError(
                    f"stream.augment.{name} is {getattr(self, name)}; images have {height}x{width} pixels, so at most "
                    f"{most}"
                )

    @property
    def is_identity(self) -> bool:
        """True where images stay as they are."""
        return self == Augment()

    def in_order(self, labels: Sequence[int]) -> Self:
        """The same where class ``labels[i]`` is called slot ``i``; only what depends on the class changes."""
        return self

    def bind(self, pixels: Tensor, slots: Tensor | None = None) -> BoundAugment:
        """Prepare a data set once, so that each batch is one gather.

        Args:
            pixels: (N, C, H, W) uint8 on any device.
            slots: (N,) classes of the images, for augmentation that depends on them (``AugmentByClass``).

        Returns:
            A function of ``rows`` (n,) int64 and a generator that gives (n, C, H, W) float in [0, 1], channels last in
            memory, on the device of ``pixels``. All draws of a call come from the generator, so the same generator
            state gives the same images.

        Raises:
            ShapeError: where ``pixels`` are not uint8 (N, C, H, W).
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ShapeError(f"pixels must be uint8 (N, C, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
        if self.policy is not None and pixels.shape[1] not in (1, 3):
            raise ConfigError(
                f"stream.augment.policy is '{self.policy}': it needs images of 1 or 3 channels, not {pixels.shape[1]}"
            )
        if self.is_identity:
            return lambda rows, generator: to_float(pixels[rows.to(pixels.device)])
        if self.resized_crop:
            return lambda rows, generator: self._crop_parts(pixels[rows.to(pixels.device)], generator)
        gather = self._gather_padded(pixels) if self.crop_padding else partial(_gather_whole, pixels)

        def augmented(rows: Tensor, generator: torch.Generator) -> Tensor:
            shift, mirror, factor = (draw.to(pixels.device) for draw in self._draw(len(rows), generator))
            images = gather(rows.to(pixels.device), shift, mirror)
            if self.brightness:
                images.mul_(factor[:, None, None, None] / 255).clamp_(max=1)
            else:
                images.div_(255)
            return self._apply_policy(images, generator)

        return augmented

    def _gather_padded(self, pixels: Tensor) -> Gather:
        """Crops of the padded images, each one gather of whole pixels."""
        device, (channels, height, width) = pixels.device, pixels.shape[1:]
        padded_height, padded_width = height + 2 * self.crop_padding, width + 2 * self.crop_padding
        entry_bytes = 4 if channels == 3 else channels  # a colour pixel is one 32-bit entry, its last byte unused
        entries = _pack(pixels, self.crop_padding, entry_bytes)
        down, across = torch.arange(height, device=device)[:, None] * padded_width, torch.arange(width, device=device)
        offsets = torch.stack([down + across, down + across.flip(0)]).flatten(1)  # (2, H * W): as it is, mirrored

        def gather(rows: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
            corner = (rows * padded_height + shift[0]) * padded_width + shift[1]
            taken = entries.index_select(0, (offsets[mirror.long()] + corner[:, None]).flatten())
            taken = taken.view(torch.uint8).view(-1, entry_bytes)[:, :channels]
            return taken.to(torch.float32).view(len(rows), height, width, channels).permute(0, 3, 1, 2)

        return gather

    def __call__(self, pixels: Tensor, generator: torch.Generator, slots: Tensor | None = None) -> Tensor:
        """Augment one batch: (n, C, H, W) uint8 to float in [0, 1], with the draws that ``bind`` would make."""
        return self.bind(pixels, slots)(torch.arange(len(pixels), device=pixels.device), generator)

    def _apply_policy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The policy and the hole, by draws that are made after all others, and alike whichever of them there is."""
        if (self.policy is None and not self.cutout) or images.shape[2:] == (1, 1):  # stands in for stored features
            return images
        draws = torch.rand(len(images), DRAWS + 2, generator=generator, device=generator.device).cpu()
        if self.policy is not None:
            images = to_float(apply_policy((255 * images).round().byte(), draws[:, :DRAWS], self.policy))
        return cut_hole(images, draws[:, DRAWS:], self.cutout) if self.cutout else images

    def _crop_parts(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        draws = self.crop_draws(torch.rand(len(pixels), 4, generator=generator, device=generator.device))
        return self.without_crop()(crop_resized(pixels, draws, self.crop_size), generator)

    def crop_draws(self, draws: Tensor) -> Tensor:
        """Draws (n, 4) for ``crop_box``, whose areas begin at 8 %, turned so that they begin at ``crop_area``."""
        if self.crop_area == 0.08:
            return draws
        area = self.crop_area + (1 - self.crop_area) * draws[:, :1]
        return torch.cat([(area - 0.08) / 0.92, draws[:, 1:]], dim=1)

    def without_crop(self) -> Augment:
        """The augmentation without its random resized crop, for images that were cropped already."""
        return replace(self, resized_crop=False, crop_area=0.08, crop_size=None)

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Corner (2, n) of the crop, mirror (n,) bool, brightness factor (n,); always the same number of draws."""
        device = generator.device
        shift = torch.randint(2 * self.crop_padding + 1, (2, n), generator=generator, device=device)
        mirror = torch.rand(n, generator=generator, device=device) < (0.5 if self.flip else 0.0)
        low, high = max(0.0, 1 - self.brightness), 1 + self.brightness
        return shift, mirror, torch.rand(n, generator=generator, device=device) * (high - low) + low


def _gather_whole(pixels: Tensor, rows: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Images that are not padded, so that all corners are 0."""
    taken = pixels[rows]
    return channels_last_floats(torch.where(mirror[:, None, None, None], taken.flip(3), taken))


def _pack(pixels: Tensor, padding: int, entry_bytes: int) -> Tensor:
    """Zero-padded images as one entry a pixel: (P,) int32 where an entry has four bytes, else (P, C) uint8."""
    n, channels, height, width = pixels.shape
    shape = (n, height + 2 * padding, width + 2 * padding, entry_bytes)
    packed = torch.zeros(shape, dtype=torch.uint8, device=pixels.device)
    packed[:, padding : padding + height, padding : padding + width, :channels] = pixels.permute(0, 2, 3, 1)
    return packed.view(torch.int32).flatten() if entry_bytes == 4 else packed.view(-1, entry_bytes)
