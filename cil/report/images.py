"""Images of a data set on a page: small PNG files inside its text."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from typing import Any

SIDE = 32  # pixels of the height beyond which an image is made smaller


def png_strip(images: Iterable[Any]) -> bytes:
    """Images side by side, no higher than ``SIDE``, as a PNG.

    Args:
        images: (H, W, C) uint8 each, with one channel or three; all of one height.
    """
    import numpy as np
    from PIL import Image

    made = [Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]) for image in images]
    lower = [one if one.height <= SIDE else one.resize((SIDE * one.width // one.height, SIDE)) for one in made]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([np.asarray(one) for one in lower], axis=1)).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(png: bytes, words: str) -> str:
    """A PNG as an element of a page, with ``words`` for who does not see it."""
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
