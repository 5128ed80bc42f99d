"""What opening a source may do, and what every kind of source has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART_NAMES = ("all", "train", "val", "test")


@dataclass(frozen=True)
class Access:
    """What opening a source may do.

    Attributes:
        root: The data root; paths are relative to it.
        download: Whether what is not there may be fetched.
        why_not: Where it may not, the reason.
    """

    root: Path
    download: bool = False
    why_not: str = ""


def parts_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """The official parts that a source names, in order."""
    return {name: source[name] for name in PART_NAMES if name in source}


def obtain(source: Mapping[str, Any]) -> str:
    """What the source says on where its data are from."""
    return f" ({source['obtain']})" if source.get("obtain") else ""
