"""Augmentation that depends on the class of an image: flips for photographs, none for digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from cil.data.augment import Augment, BoundAugment
from cil.errors import ConfigError


@dataclass(frozen=True)
class AugmentByClass(Augment):
    """One of several augmentations, chosen by the class of an image.

    Its own fields (``flip`` and so on) hold what all choices have in common. They act where no slots are given.

    Args:
        choices: The augmentations.
        choice_of: For each label, or slot once ``in_order`` was called, its place in ``choices``.
    """

    choices: tuple[Augment, ...] = ()
    choice_of: tuple[int, ...] = ()

    @classmethod
    def of(cls, choices: Sequence[Augment], choice_of: Sequence[int]) -> Augment:
        """The choices by class; where all are alike, that one.

        Raises:
            ConfigError: where one of them crops to a size of its own, as all images have one size.
        """
        if all(choice == choices[0] for choice in choices):
            return choices[0]
        if sizes := [choice.crop_size for choice in choices if choice.crop_size is not None]:
            raise ConfigError(
                f"stream.dataset: augment.crop_size is {sizes[0]} for some sets of a pool, whose augmentations differ; "
                f"give all sets the same augment, or set stream.augment, or stream.size"
            )
        return cls(
            crop_padding=min(choice.crop_padding for choice in choices),
            flip=all(choice.flip for choice in choices),
            brightness=min(choice.brightness for choice in choices),
            choices=tuple(choice.without_crop() for choice in choices),
            choice_of=tuple(choice_of),
        )

    def check_size(self, height: int, width: int) -> None:
        for choice in self.choices:
            choice.check_size(height, width)

    def in_order(self, labels: Sequence[int]) -> Self:
        return replace(self, choice_of=tuple(self.choice_of[label] for label in labels))

    def bind(self, pixels: Tensor, slots: Tensor | None = None) -> BoundAugment:
        if slots is None:
            return super().bind(pixels)
        which = torch.tensor(self.choice_of)[slots.cpu()]  # (N,)
        place = torch.zeros(len(which), dtype=torch.int64)  # row of an image among those of its choice
        bound = []
        for number, choice in enumerate(self.choices):
            rows = (which == number).nonzero().flatten()
            place[rows] = torch.arange(len(rows))
            bound.append(choice.bind(pixels[rows.to(pixels.device)]))
        shape, device = pixels.shape[1:], pixels.device

        def augmented(rows: Tensor, generator: torch.Generator) -> Tensor:
            rows = rows.cpu()
            images = torch.empty(len(rows), *shape, device=device).contiguous(memory_format=torch.channels_last)
            for number, own in enumerate(bound):
                here = (which[rows] == number).nonzero().flatten()
                if len(here):
                    images[here.to(device)] = own(place[rows[here]], generator)
            return images

        return augmented
