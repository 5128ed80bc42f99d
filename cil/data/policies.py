"""AutoAugment, RandAugment and Cutout on batches: every image has its own operations, by draws that are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

POLICIES = ("autoaugment", "randaugment", "rand_m9")
DRAWS = 6  # numbers in [0, 1) for each image: two choices, two chances, two signs
LEVEL = 0.9  # of RandAugment: magnitude 9 on a scale of 10

Step = tuple[str, float]  # operation, and share in [-1, 1] of its largest magnitude


def apply_policy(pixels: Tensor, draws: Tensor, policy: str) -> Tensor:
    """Two operations on each image; images that have the same ones are done together.

    Args:
        pixels: (n, C, H, W) uint8, C 1 or 3; not changed.
        draws: (n, DRAWS) in [0, 1).
        policy: One of ``POLICIES``.

    Returns:
        (n, C, H, W) uint8. Pixels that come from outside an image are 0.

    Source: Cubuk et al., CVPR 2019, arXiv:1805.09501 (the 25 pairs found on CIFAR-10, as torchvision has them), and
    2020, arXiv:1909.13719 (two of 14 operations at magnitude 9). ``rand_m9`` is as timm's ``rand-m9``: each of the two
    is done with a chance of one half, and there is Invert in place of the identity; without SolarizeAdd, and
    Posterize leaves four bits, there one.
    """
    done = pixels.clone()
    plan = [_steps(own, policy) for own in draws.tolist()]
    for place in (0, 1):
        groups: dict[Step, list[int]] = {}
        for row, steps in enumerate(plan):
            if (step := steps[place]) is not None:
                groups.setdefault(step, []).append(row)
        for (name, share), rows in groups.items():
            which = torch.tensor(rows, device=done.device)
            done[which] = _operations()[name](done[which], share)
    return done


def cut_hole(images: Tensor, draws: Tensor, side: int) -> Tensor:
    """A square of zeros around a random pixel of each image, cut off at the edge (Cutout).

    Args:
        images: (n, C, H, W).
        draws: (n, 2) in [0, 1).
        side: Side of the square in pixels.

    Source: DeVries and Taylor 2017, arXiv:1708.04552.
    """
    kept = []
    for length, draw in zip(images.shape[2:], draws.T, strict=True):
        first = (draw * length).long() - side // 2  # (n,)
        away = torch.arange(length) - first[:, None]
        kept.append((away < 0) | (away >= side))
    mask = kept[0][:, None, :, None] | kept[1][:, None, None, :]
    return images.mul(mask.to(images))


def _steps(draws: Sequence[float], policy: str) -> tuple[Step | None, Step | None]:
    signs = [1 if draw < 0.5 else -1 for draw in draws[4:]]
    if policy == "randaugment":
        names = [None, *(name for name in _operations() if name != "Invert")]
        found = [names[int(choice * len(names))] for choice in draws[:2]]
        steps = [None if name is None else (name, LEVEL * sign) for name, sign in zip(found, signs, strict=True)]
    elif policy == "rand_m9":
        known = list(_operations())
        steps = [
            (known[int(choice * len(known))], LEVEL * sign) if chance < 0.5 else None
            for choice, chance, sign in zip(draws[:2], draws[2:4], signs, strict=True)
        ]
    else:
        pair = _pairs()[int(draws[0] * len(_pairs()))]
        steps = [
            (name, sign * (magnitude or 0) / 9) if draw < chance else None
            for (name, chance, magnitude), draw, sign in zip(pair, draws[2:4], signs, strict=True)
        ]
    return steps[0], steps[1]


@cache
def _pairs() -> list[Any]:
    """25 pairs of (operation, its chance, magnitude 0 to 9 or None)."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    return list(AutoAugment(AutoAugmentPolicy.CIFAR10).policies)


@cache
def _operations() -> dict[str, Callable[[Tensor, float], Tensor]]:
    """Operations on (n, C, H, W) uint8 by a share of the largest magnitude; its sign is a direction, if any."""
    from torchvision.transforms.v2 import functional as f

    def affine(x: Tensor, across: float = 0, down: float = 0, lean: float = 0, rise: float = 0) -> Tensor:
        shear = [math.degrees(math.atan(slope)) for slope in (lean, rise)]
        moved: Tensor = f.affine(x, angle=0, translate=[across, down], scale=1, shear=shear, center=[0, 0])
        return moved

    return {
        "ShearX": lambda x, s: affine(x, lean=0.3 * s),
        "ShearY": lambda x, s: affine(x, rise=0.3 * s),
        "TranslateX": lambda x, s: affine(x, across=round(150 / 331 * x.shape[3] * s)),
        "TranslateY": lambda x, s: affine(x, down=round(150 / 331 * x.shape[2] * s)),
        "Rotate": lambda x, s: f.rotate(x, 30 * s),
        "Brightness": lambda x, s: f.adjust_brightness(x, 1 + 0.9 * s),
        "Color": lambda x, s: f.adjust_saturation(x, 1 + 0.9 * s),
        "Contrast": lambda x, s: f.adjust_contrast(x, 1 + 0.9 * s),
        "Sharpness": lambda x, s: f.adjust_sharpness(x, 1 + 0.9 * s),
        "Posterize": lambda x, s: f.posterize(x, 8 - round(4 * abs(s))),
        "Solarize": lambda x, s: f.solarize(x, 255 * (1 - abs(s))),
        "AutoContrast": lambda x, s: f.autocontrast(x),
        "Equalize": lambda x, s: f.equalize(x),
        "Invert": lambda x, s: f.invert(x),
    }
