"""Images that stay files and are decoded when asked for."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cil.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


class FileStore:
    """Image files as a store of samples.

    The evaluation view is the survey's for ImageNet, scaled to ``size``: the shorter side becomes size * 256 / 224,
    then the centre is cut out. The training view is a random part of 8 to 100 % of the area with sides 3:4 to 4:3,
    resized; flips and brightness are the stream's ``augment``.

    Args:
        paths: One file an image.
        size: Height and width in pixels, both views.
        channels: 3 for RGB, 1 for grey; files are converted.
        digests: Folder in which ``digest`` keeps its result; None to keep nothing.

    Raises:
        ConfigError: where size or channels are out of range.

    Source:
        Training view: Szegedy et al. 2015 (random resized crop). Departure: sides that leave the picture are cut to it
        instead of being drawn again, so that each image takes four draws.
    """

    in_memory = False

    def __init__(self, paths: Sequence[str], size: int, channels: int = 3, digests: Path | None = None) -> None:
        if size < 1 or channels not in (1, 3):
            raise ConfigError(f"stream.size is {size}, stream.channels {channels}; need size >= 1 and 1 or 3 channels")
        self.paths = tuple(paths)
        self.size, self.channels, self.digests = size, channels, digests
        self.shape = (channels, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, rows: Tensor) -> Tensor:
        """Evaluation view, (n, C, size, size) uint8; decoded on as many threads as torch may use.

        Raises:
            DataError: for a file that is no readable image, naming it.
        """
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return self._stack(list(pool.map(self._evaluation_view, rows.tolist())))

    def training_pixels(self, rows: Tensor, draws: Tensor | None) -> Tensor:
        """Training view by ``draws`` (n, 4) in [0, 1): area, ratio of sides, left, top; without draws as ``pixels``.

        Raises:
            DataError: for a file that is no readable image, naming it.
        """
        if draws is None:
            return self.pixels(rows)
        return self._stack([self._training_view(*pair) for pair in zip(rows.tolist(), draws.tolist(), strict=True)])

    def take(self, rows: Tensor) -> FileStore:
        """A store of those files alone."""
        return FileStore([self.paths[row] for row in rows.tolist()], self.size, self.channels, self.digests)

    def digest(self) -> bytes:
        """SHA-256 over the bytes of all files, in order; remembered as long as no file changes size or time.

        Raises:
            DataError: for a file that is missing, or empty.
        """
        listing = hashlib.sha256()
        for path in self.paths:
            listing.update(f"{path}\0{_size_and_time(path)}\n".encode())
        kept = None if self.digests is None else self.digests / listing.hexdigest()
        if kept is not None and kept.is_file() and len(known := kept.read_bytes()) == 32:
            return known
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            made = hashlib.sha256(b"".join(pool.map(_file_digest, self.paths))).digest()
        if kept is not None:
            with suppress(OSError):  # nowhere to keep it: computed again next time
                kept.parent.mkdir(parents=True, exist_ok=True)
                part = kept.with_suffix(f".{os.getpid()}")
                part.write_bytes(made)
                part.replace(kept)
        return made

    def _evaluation_view(self, row: int) -> Image:
        def view(image: Image) -> Image:
            shorter = round(self.size * 256 / 224)
            scale = shorter / min(image.size)
            width, height = (max(shorter, round(side * scale)) for side in image.size)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            box = (left, top, left + self.size, top + self.size)
            return image.resize((width, height), _BILINEAR).crop(box)

        return self._decoded(row, view)

    def _training_view(self, row: int, draws: Sequence[float]) -> Image:
        def view(image: Image) -> Image:
            area = image.width * image.height * (0.08 + 0.92 * draws[0])
            ratio = math.exp((2 * draws[1] - 1) * math.log(4 / 3))  # width to height
            width = min(image.width, max(1, round(math.sqrt(area * ratio))))
            height = min(image.height, max(1, round(math.sqrt(area / ratio))))
            left = int(draws[2] * (image.width - width + 1))
            top = int(draws[3] * (image.height - height + 1))
            return image.resize((self.size, self.size), _BILINEAR, box=(left, top, left + width, top + height))

        return self._decoded(row, view)

    def _decoded(self, row: int, view: Callable[[Image], Image]) -> Image:
        from PIL import Image

        path = self.paths[row]
        try:
            with Image.open(path) as file:
                return view(file.convert("RGB" if self.channels == 3 else "L"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image ({error}); replace or remove it") from None

    def _stack(self, images: Sequence[Image]) -> Tensor:
        if not images:
            return torch.empty((0, *self.shape), dtype=torch.uint8)
        arrays = np.stack([np.asarray(image) for image in images]).reshape(-1, self.size, self.size, self.channels)
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, without importing Pillow


def _size_and_time(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not found.st_size:
        raise DataError(f"{path} is empty; replace or remove it")
    return f"{found.st_size} {found.st_mtime_ns}"


def _file_digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
