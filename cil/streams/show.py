"""Pictures of a stream: a few training images of each experience, or the same test images in each domain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from cil.data import Samples
from cil.errors import ConfigError
from cil.streams.base import Stream
from cil.streams.shifts import Segment, ShiftStream

TILE, GAP, CAPTION, MARGIN = 96, 6, 15, 36  # pixels: image, space around it, its class name, place for row numbers

MADE_BY = "cil show"  # in the metadata of what is written here


def contact_sheet(stream: Stream | ShiftStream, path: str | Path, per_experience: int = 8) -> Path:
    """Write a PNG of the stream: a row of images for each step of it, each image under its class name.

    For a stream of experiences, a row shows training images of one experience, spread evenly over its classes in order
    of their slots; its test data are not read. For a shift stream, the first row shows clean test images where there
    are some, and then every domain of every segment has a row, of the same images where it has them.

    Args:
        path: File to write; its folder is made where it is missing.
        per_experience: Images in a row.

    Raises:
        ConfigError: where ``per_experience`` is less than 1, another file has the name, or its folder cannot be made.
    """
    if per_experience < 1:
        raise ConfigError(f"per_experience is {per_experience}; it must be 1 or more")
    where = Path(path)
    if where.exists() and (where.is_dir() or MADE_BY.encode() not in where.read_bytes()[:200]):
        raise ConfigError(f"{where} is there already, and no picture of cil show; remove it, or choose another name")
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    if isinstance(stream, ShiftStream):
        what = f"{len(stream)} segments, {len(stream.domains)} domains"
        rows: dict[str, Callable[[], Samples]] = _domain_rows(stream, per_experience)
    else:
        what = f"{len(stream)} experiences"
        rows = {str(index): partial(_of_experience, stream, index, per_experience) for index in range(len(stream))}
    font, wide, high = ImageFont.load_default(size=11), TILE + GAP, TILE + GAP + CAPTION
    names = list(rows)
    margin = max(MARGIN, 2 * GAP + round(max(font.getlength(name) for name in names)))
    sheet = Image.new("RGB", (margin + per_experience * wide, 2 * CAPTION + len(names) * high), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), f"{stream.name}: {what}, {len(stream.classes)} classes", "black", font)
    for row, name in enumerate(names):
        top = 2 * CAPTION + row * high
        draw.text((GAP, top + CAPTION + TILE // 2), name, "black", font, anchor="lm")
        picked = rows[name]()
        for column, (pixels, slot) in enumerate(zip(picked.pixels, picked.slots.tolist(), strict=True)):
            shown = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
            image = Image.fromarray(shown.permute(1, 2, 0).contiguous().cpu().numpy())
            image = image.resize(_within(image.size, TILE), Image.Resampling.NEAREST)
            left = margin + column * wide
            draw.text((left, top), stream.classes[slot][:14], "black", font)
            sheet.paste(image, (left, top + CAPTION))
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{where.parent} cannot be made ({error.strerror}); choose another place") from None
    mark = PngInfo()
    mark.add_text("Software", MADE_BY)
    sheet.save(where, format="PNG", pnginfo=mark)
    return where


def strip(stream: Stream, index: int, wanted: int = 8) -> bytes:
    """Training images of one experience side by side, in their own size, as a PNG."""
    import io

    from PIL import Image

    picked = _spread(stream[index].train, wanted).pixels
    shown = picked if picked.shape[1] == 3 else picked[:, :1].expand(-1, 3, -1, -1)
    joined = torch.cat(list(shown), dim=2).permute(1, 2, 0).contiguous().cpu().numpy()  # (H, n W, 3)
    buffer = io.BytesIO()
    Image.fromarray(joined).save(buffer, format="PNG")
    return buffer.getvalue()


def thumbnails(samples: Samples, wanted: int = 6, most: int = 32) -> torch.Tensor:
    """A few images, small: (n, h, w, 3) uint8, spread evenly over the classes, no side longer than ``most`` pixels."""
    picked = _spread(samples, wanted).pixels.cpu()
    shown = picked if picked.shape[1] == 3 else picked[:, :1].expand(-1, 3, -1, -1)
    if max(shown.shape[2:]) > most:
        width, height = _within((shown.shape[3], shown.shape[2]), most)
        shown = torch.nn.functional.interpolate(shown.float(), (height, width), mode="area").round().to(torch.uint8)
    return shown.permute(0, 2, 3, 1).contiguous()


def _of_experience(stream: Stream, index: int, wanted: int) -> Samples:
    return _spread(stream[index].train, wanted)


def _domain_rows(stream: ShiftStream, wanted: int) -> dict[str, Callable[[], Samples]]:
    """Rows by name of the segment, and of the domain where a segment has several."""
    rows: dict[str, Callable[[], Samples]] = {}
    first = stream.segments[0].samples() if stream.clean is None else stream.clean()
    shown = _spread(first, wanted)
    if stream.clean is not None:
        rows["clean"] = lambda: shown
    for segment in stream.segments:
        domains = torch.unique(segment.domains, sorted=True).tolist()
        for domain in domains:
            name = segment.name if len(domains) == 1 else f"{segment.name}: {stream.domains[domain]}"
            rows[name] = partial(_of_domain, segment, domain, shown, wanted)
    return rows


def _of_domain(segment: Segment, domain: int, shown: Samples, wanted: int) -> Samples:
    """The images ``shown`` as they look in this domain; others where it lacks them."""
    samples = segment.samples()[segment.domains == domain]
    if "image" not in shown.extras or "image" not in samples.extras:
        return _spread(samples, wanted)
    place_of = {number: place for place, number in enumerate(samples.extras["image"].tolist())}
    places = [place_of[number] for number in shown.extras["image"].tolist() if number in place_of]
    return samples[places] if places else _spread(samples, wanted)


def _spread(samples: Samples, wanted: int) -> Samples:
    """Images spread evenly over the classes, in order of their slots."""
    wanted = min(len(samples), wanted)
    places = ((torch.arange(wanted) + 0.5) * len(samples) / wanted).long()  # in the middle of equal pieces
    return samples[samples.slots.argsort(stable=True)[places]]


def _within(size: tuple[int, int], most: int) -> tuple[int, int]:
    """The size scaled so that its longer side is ``most``."""
    return max(1, size[0] * most // max(size)), max(1, size[1] * most // max(size))
