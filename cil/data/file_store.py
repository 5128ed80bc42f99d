"""Images that stay files and are decoded when asked for."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import time
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data.arrays import replacing
from cil.data.crops import crop_box
from cil.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
_say = logging.getLogger("cil")
warnings.filterwarnings("ignore", message="Image size .*decompression bomb")  # read, up to the size that Pillow refuses
UNREAD_SUFFIXES = frozenset((".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg"))  # pictures left out, and said
# decoded whatever the suffix says; for EPS, which it knows too, Pillow would start Ghostscript
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


def read_image(path: str | Path, mode: str = "RGB") -> Image:
    """A decoded image file, converted to ``RGB`` or ``L``.

    16 bits a channel become 8 (65,535 is 255). Transparency is left out, as torchvision does: the colours below it
    count. CMYK and palettes become the colours that they stand for. Of several frames or pages the first counts. An
    image is turned as the orientation in its EXIF data says.

    Raises:
        DataError: for a file that is no readable image, or whose numbers have no agreed range, naming it.
    """
    if not Path(path).is_file():  # a pipe or a device would be read for ever
        raise DataError(f"{path} is no file, or is missing")
    return _decoded(path, path, mode).image


class _Decoded(NamedTuple):
    """A decoded file: the EXIF orientation that it was turned by (1: none), and whether it has 16 bits a channel."""

    image: Image
    orientation: int
    deep: bool


def _decoded(source: Any, path: str | Path, mode: str, draft: bool = False) -> _Decoded:
    """As ``read_image``, from the path or an open file; ``draft``: a small version, where that is quicker."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source, formats=FORMATS) as file:
            if draft:
                file.draft(mode, (1, 1))
            deep = any(";16" in str(tile[3]) for tile in file.tile)
            image: Image.Image | None = None
            if not file.mode.startswith(("I", "F")):
                image = file.convert(mode)
            elif file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
                pixels = (np.asarray(file).astype(np.uint32) + 128) // 257  # 16 bits, rounded to 8
                image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
            if image is not None:
                orientation = _orientation(file)
                turn = _TURNS.get(orientation)
                turned = image if turn is None else image.transpose(Image.Transpose(turn))
                return _Decoded(turned, orientation if turn is not None else 1, deep)
            kind = {"F": "floats", "I": "32-bit numbers"}.get(file.mode, file.mode)
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise DataError(f"{path} cannot be read as an image (none of {formats}); replace or remove it") from None
    except Exception as error:  # damaged bytes make decoders raise all sorts of things
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove it") from None
    raise DataError(f"{path} has pixels that are {kind}, whose range is not known; save it with 8 or 16 bits a channel")


_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation: PIL.Image.Transpose that undoes it


def _orientation(file: Any) -> int:
    """EXIF orientation of a decoded file, 1 where it has none that can be read."""
    try:
        return int(file.getexif().get(274, 1))
    except Exception:  # damaged EXIF data: the image itself was decoded
        return 1


def centre_cut(image: Image, size: int, shorter: int) -> Image:
    """A square of ``size`` pixels, out of the centre of the image with its shorter side brought to ``shorter``."""
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image if image.size == (width, height) else image.resize((width, height), _BILINEAR)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def is_image(file: str | Path) -> bool:
    """True for names of image files that are not hidden."""
    path = Path(file)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def images_below(folder: Path) -> list[str]:
    """Paths of all image files in a folder and the folders in it, sorted.

    Raises:
        DataError: for a name that is not UTF-8, which no record can hold.
    """
    files, linked = list[Path](), list[Path]()
    for base, inner, names in os.walk(folder):
        files += [Path(base) / file for file in names if not file.startswith(".")]
        linked += [Path(base) / name for name in inner if (Path(base) / name).is_symlink()]
    if linked:
        _say.warning(f"{folder}: links to folders are not followed inside a class, as {_utf8(str(linked[0]))}")
    skipped = sorted(str(file) for file in files if file.suffix.lower() in UNREAD_SUFFIXES)
    if skipped:
        _say.warning(f"{folder}: left out {len(skipped)} images that are not read, as {_utf8(skipped[0])}")
    return sorted(_utf8(str(file)) for file in files if is_image(file))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder that are not hidden, sorted.

    Raises:
        DataError: for a name that is not UTF-8, or a link that leads nowhere.
    """
    found = [entry for entry in os.scandir(folder) if entry.name[0] != "."]
    for entry in found:
        if entry.is_symlink() and not Path(entry.path).exists():
            raise DataError(f"{_utf8(entry.path)} is a link that leads nowhere; remove it")
    names = sorted(_utf8(entry.name) for entry in found if entry.is_dir())
    looks: dict[str, str] = {}
    for name in names:
        if not name.isprintable():
            raise DataError(f"the name {name!r} in {folder} has signs that cannot be seen; rename that folder")
        other = looks.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), name)
        if other != name:
            _say.warning(f"{folder} has the folders {other!r} and {name!r}, which differ in case or spelling alone")
    return names


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {os.fsencode(name)!r} is not UTF-8; rename that file or folder") from None
    return name


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
        DataError: from all reads, for a file that is no readable image, naming it.

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
        if not isinstance(size, int) or not 1 <= size <= MOST_SIZE or channels not in (1, 3):
            raise ConfigError(
                f"stream.size is {size}, stream.channels {channels}; need a size of 1 to {MOST_SIZE} pixels and 1 or 3 "
                f"channels"
            )
        self.paths = tuple(paths)
        self.size, self.channels, self.digests = size, channels, digests
        self.shorter = size * 256 // 224 if shorter is None else max(size, shorter)
        self.shape = (channels, size, size)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def view(self) -> str:
        return f"files {self.shape} {self.shorter}"

    def pixels(self, rows: Tensor) -> Tensor:
        """Evaluation view, (n, C, size, size) uint8; decoded on as many threads as torch may use."""
        stacked = np.empty((len(rows), *self.shape), np.uint8)

        def decode(place: int, row: int) -> None:
            self._put(stacked[place], centre_cut(self._decode(row), self.size, self.shorter))

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for _ in pool.map(decode, range(len(rows)), rows.tolist()):  # raises what a thread has raised
                pass
        return torch.from_numpy(stacked)

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Training view by ``draws`` (n, 4) in [0, 1): area, ratio of sides, left, top."""
        stacked = np.empty((len(rows), *self.shape), np.uint8)
        for place, row, own in zip(stacked, rows.tolist(), draws.tolist(), strict=True):
            image = self._decode(row)
            left, top, width, height = crop_box(image.width, image.height, own)
            # not resize(box=...), which lets in a little of the surroundings of the box
            part = image.crop((left, top, left + width, top + height))
            self._put(place, part.resize((self.size, self.size), _BILINEAR))
        return torch.from_numpy(stacked)

    def take(self, rows: Tensor) -> FileStore:
        paths = [self.paths[row] for row in rows.tolist()]
        return FileStore(paths, self.size, self.channels, self.shorter, self.digests)

    def digest(self, rows: Tensor) -> bytes:
        """SHA-256 over the bytes of the files, in order; remembered as long as none changes size or time.

        Each file is decoded once on the way, so that what is damaged is known before anything is trained.

        Raises:
            DataError: for files that are missing, empty or no readable images, naming the first.
        """
        return hashlib.sha256(self._digests(rows)).digest()

    def sums(self, rows: Tensor) -> NDArray[np.uint8]:
        """SHA-256 of each file, (n, 32); raises as ``digest`` does."""
        return np.frombuffer(self._digests(rows), np.uint8).reshape(-1, 32)

    def row_keys(self, rows: Tensor) -> NDArray[np.uint64]:
        """The first eight bytes of the SHA-256 of each file, (n,)."""
        return self.sums(rows).view(np.uint64)[:, 0]

    def _digests(self, rows: Tensor) -> bytes:
        """SHA-256 of each file, 32 bytes each; see ``digest``."""
        paths = [self.paths[row] for row in rows.tolist()]
        listing = hashlib.sha256(b"decoded, turned ")
        for path in paths:
            listing.update(f"{path}\0{_size_and_time(path)}\n".encode())
        kept = None if self.digests is None else self.digests / listing.hexdigest()
        if kept is not None and kept.is_file() and len(known := kept.read_bytes()) == 32 * len(paths):
            return known
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            found = list(with_progress(pool.map(_look_at, paths), len(paths)))
        damaged = [str(one) for one in found if isinstance(one, DataError)]
        if damaged:
            more = f"; and {len(damaged) - 1} more files" if len(damaged) > 1 else ""
            raise DataError(f"{damaged[0]}{more}")
        looked = [one for one in found if isinstance(one, _Looked)]
        _refuse_twelve_bits(paths, looked)
        made = b"".join(one.digest for one in looked)
        if kept is not None:
            with suppress(OSError), replacing(kept) as part:  # nowhere to keep it: computed again next time
                part.write_bytes(made)
        return made

    def _decode(self, row: int) -> Image:
        return read_image(self.paths[row], "RGB" if self.channels == 3 else "L")

    def _put(self, place: NDArray[np.uint8], image: Image) -> None:
        place[...] = np.asarray(image).reshape(self.size, self.size, -1).transpose(2, 0, 1)


DARK = 16  # of 255: the largest value of 12-bit numbers that are taken for 16-bit ones
MOST_SIZE = 8192  # pixels: an image of them takes 200 MB
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, without importing Pillow


def _size_and_time(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not found.st_size:
        raise DataError(f"{path} is empty; replace or remove it")
    return f"{found.st_size} {found.st_mtime_ns}"


class _Looked(NamedTuple):
    """What was found in a file: SHA-256 of its bytes, and of 16-bit files the largest value, as 8 bits; else None."""

    digest: bytes
    brightest: int | None


def _look_at(path: str) -> _Looked | DataError:
    try:
        content = Path(path).read_bytes()
        decoded = _decoded(io.BytesIO(content), path, "RGB", draft=True)
    except OSError as error:
        return DataError(f"{path} cannot be read: {error.strerror}")
    except DataError as error:
        return error
    if decoded.orientation != 1:  # versions that did not turn it saw another image
        content += f"turned by {decoded.orientation}".encode()
    brightest = int(np.asarray(decoded.image).max()) if decoded.deep else None
    return _Looked(hashlib.sha256(content).digest(), brightest)


def _refuse_twelve_bits(paths: Sequence[str], looked: Sequence[_Looked]) -> None:
    """Refuse 16-bit files none of which has a value of 4,240 or more: 12-bit numbers, which would be nearly black."""
    deep = [(path, one.brightest) for path, one in zip(paths, looked, strict=True) if one.brightest is not None]
    if deep and max(brightest for _, brightest in deep) <= DARK:
        raise DataError(
            f"{deep[0][0]}{f' and {len(deep) - 1} more files' if deep[1:] else ''}: 16 bits a channel, but all "
            f"values below 4,240, as of 12-bit numbers; scale them to 0 to 65,535, or save them with 8 bits"
        )


def with_progress(items: Iterable[T], count: int, seconds: float = 10.0, each: int = 1) -> Iterator[T]:
    """The items, each of so many images, with a line on standard error now and then where they take long."""
    said = time.monotonic()
    for number, item in enumerate(items, start=1):
        number *= each
        if time.monotonic() - said > seconds:
            said = time.monotonic()
            print(f"cil: reading each image once: {number:,} of {count:,}", file=sys.stderr, flush=True)
        yield item
