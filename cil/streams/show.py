"""A stream as a picture: a few training images of each experience."""

from __future__ import annotations

from pathlib import Path

import torch

from cil.errors import ConfigError
from cil.streams.base import Stream

TILE, GAP, CAPTION, MARGIN = 96, 6, 15, 36  # pixels: image, space around it, its class name, place for row numbers


def contact_sheet(stream: Stream, path: str | Path, per_experience: int = 8) -> Path:
    """Write a PNG with one row of training images for each experience, each under its class name.

    The images of a row are spread evenly over the classes of the experience, in order of their slots.

    Args:
        stream: Any stream; its test data are not read.
        path: File to write; its folder is made where it is missing.
        per_experience: Images in a row.

    Returns:
        The path.

    Raises:
        ConfigError: where ``per_experience`` is less than 1.
    """
    if per_experience < 1:
        raise ConfigError(f"per_experience is {per_experience}; it must be 1 or more")
    from PIL import Image, ImageDraw, ImageFont

    font, wide, high = ImageFont.load_default(size=11), TILE + GAP, TILE + GAP + CAPTION
    sheet = Image.new("RGB", (MARGIN + per_experience * wide, 2 * CAPTION + len(stream) * high), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), f"{stream.name}: {len(stream)} experiences, {len(stream.classes)} classes", "black", font)
    for row, experience in enumerate(stream):
        top = 2 * CAPTION + row * high
        draw.text((GAP, top + CAPTION + TILE // 2), f"{experience.index}", "black", font, anchor="lm")
        by_slot = experience.train.slots.argsort(stable=True)
        picked = experience.train[by_slot[_evenly(len(by_slot), per_experience)]]
        for column, (pixels, slot) in enumerate(zip(picked.pixels, picked.slots.tolist(), strict=True)):
            shown = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
            image = Image.fromarray(shown.permute(1, 2, 0).contiguous().cpu().numpy())
            image = image.resize(_within(image.size, TILE), Image.Resampling.NEAREST)
            left = MARGIN + column * wide
            draw.text((left, top), stream.classes[slot][:14], "black", font)
            sheet.paste(image, (left, top + CAPTION))
    where = Path(path)
    where.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(where, format="PNG")
    return where


def _evenly(count: int, wanted: int) -> torch.Tensor:
    """``wanted`` places (or all ``count``), in the middle of equal pieces."""
    wanted = min(count, wanted)
    return ((torch.arange(wanted) + 0.5) * count / wanted).long()


def _within(size: tuple[int, int], most: int) -> tuple[int, int]:
    """The size scaled so that its longer side is ``most``."""
    return max(1, size[0] * most // max(size)), max(1, size[1] * most // max(size))
