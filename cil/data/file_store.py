"""Images that stay files and are decoded when asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cil.data.arrays import replacing
from cil.data.crops import crop_box
from cil.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


def read_image(path: str | Path, mode: str = "RGB") -> Image:
    """A decoded image file, converted to ``RGB`` or ``L``.

    Raises:
        DataError: for a file that is no readable image, naming it.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert(mode)
    except Exception as error:  # damaged bytes make decoders raise all sorts of things
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove it") from None


def is_image(file: str | Path) -> bool:
    """True for names of image files that are not hidden."""
    path = Path(file)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def images_below(folder: Path) -> list[str]:
    """Paths of all image files in a folder and the folders in it, sorted."""
    return sorted(str(Path(base) / file) for base, _, files in os.walk(folder) for file in files if is_image(file))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder that are not hidden, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


class FileStore:
    """Image files as a store of samples.

    The evaluation view is an image whose shorter side became ``shorter`` pixels, and the centre of it. The training
    view is a random part (``crop_box``) of the file, resized; flips and brightness are the stream's ``augment``.

    Args:
        paths: Files, one for each image.
        size: Height and width in pixels, both views.
        channels: 3 for RGB, 1 for grey; files are converted.
        shorter: At least ``size``; None: size * 256 / 224, as is usual for ImageNet. With ``size`` itself, files of
            size x size pixels are left as they are.
        digests: Folder in which ``digest`` keeps its result; None to keep nothing.

    Raises:
        ConfigError: where size or channels are out of range.

    Source: Evaluation view: the survey of Zhou et al. 2024; equal to torchvision's Resize and CenterCrop.
    """

    in_memory = False

    def __init__(
        self,
        paths: Sequence[str],
        size: int,
        channels: int = 3,
        shorter: int | None = None,
        digests: Path | None = None,
    ) -> None:
        if not isinstance(size, int) or size < 1 or channels not in (1, 3):
            raise ConfigError(f"stream.size is {size}, stream.channels {channels}; need size >= 1 and 1 or 3 channels")
        self.paths = tuple(paths)
        self.size, self.channels, self.digests = size, channels, digests
        self.shorter = size * 256 // 224 if shorter is None else max(size, shorter)
        self.shape = (channels, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, rows: Tensor) -> Tensor:
        """Evaluation view, (n, C, size, size) uint8; decoded on as many threads as torch may use.

        Raises:
            DataError: for a file that is no readable image, naming it.
        """
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return self._stack(len(rows), pool.map(self._evaluation_view, rows.tolist()))

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Training view by ``draws`` (n, 4) in [0, 1): area, ratio of sides, left, top.

        Raises:
            DataError: for a file that is no readable image, naming it.
        """
        pairs = zip(rows.tolist(), draws.tolist(), strict=True)
        return self._stack(len(rows), (self._training_view(row, own) for row, own in pairs))

    def take(self, rows: Tensor) -> FileStore:
        """A store of those files alone."""
        paths = [self.paths[row] for row in rows.tolist()]
        return FileStore(paths, self.size, self.channels, self.shorter, self.digests)

    def digest(self, rows: Tensor) -> bytes:
        """SHA-256 over the bytes of the files, in order; remembered as long as none changes size or time.

        Raises:
            DataError: for a file that is missing, or empty.
        """
        paths = [self.paths[row] for row in rows.tolist()]
        listing = hashlib.sha256()
        for path in paths:
            listing.update(f"{path}\0{_size_and_time(path)}\n".encode())
        kept = None if self.digests is None else self.digests / listing.hexdigest()
        if kept is not None and kept.is_file() and len(known := kept.read_bytes()) == 32:
            return known
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            made = hashlib.sha256(b"".join(pool.map(_file_digest, paths))).digest()
        if kept is not None:
            with suppress(OSError), replacing(kept) as part:  # nowhere to keep it: computed again next time
                part.write_bytes(made)
        return made

    def _evaluation_view(self, row: int) -> Image:
        image = self._decode(row)
        width, height = (self.shorter * side // min(image.size) for side in image.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        box = (left, top, left + self.size, top + self.size)
        return image.resize((width, height), _BILINEAR).crop(box)

    def _training_view(self, row: int, draws: Sequence[float]) -> Image:
        image = self._decode(row)
        left, top, width, height = crop_box(image.width, image.height, draws)
        # not resize(box=...), which lets in a little of the surroundings of the box
        part = image.crop((left, top, left + width, top + height))
        return part.resize((self.size, self.size), _BILINEAR)

    def _decode(self, row: int) -> Image:
        return read_image(self.paths[row], "RGB" if self.channels == 3 else "L")

    def _stack(self, count: int, images: Iterable[Image]) -> Tensor:
        stacked = np.empty((count, *self.shape), np.uint8)
        for place, image in zip(stacked, images, strict=True):
            place[...] = np.asarray(image).reshape(self.size, self.size, -1).transpose(2, 0, 1)
        return torch.from_numpy(stacked)


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
