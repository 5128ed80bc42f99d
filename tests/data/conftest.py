"""Small image files and arrays on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _write(path: Path, colour: int | tuple[int, ...] | np.ndarray, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(colour, np.ndarray):
        Image.fromarray(colour).save(path)
    else:
        Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)
    return path


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """``write_image(path, colour or array, size=(width, height))``."""
    return _write


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train/ and test/ with the classes cat (red) and ant (green): 3 + 2 and 2 + 1 images of 8x8."""
    for split, counts in (("train", (2, 3)), ("test", (1, 2))):
        for (name, colour), count in zip((("ant", (0, 200, 0)), ("cat", (200, 0, 0))), counts, strict=True):
            for number in range(count):
                _write(tmp_path / "pets" / split / name / f"{number}.png", tuple(c + number for c in colour))
    return tmp_path / "pets"
