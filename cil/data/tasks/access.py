"""Access to sources: what may be downloaded, and the keys that all kinds of source share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART_NAMES = ("all", "train", "val", "test")


@dataclass(frozen=True)
class Access:
    """Permissions for opening a source.

    Attributes:
        root: The data root; paths are relative to it.
        download: True: data that are not there may be fetched.
        why_not: The reason where they may not.
    """

    root: Path
    download: bool = False
    why_not: str = ""


def parts_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """The publisher's parts (train, val, test) that a source names, in order."""
    return {name: source[name] for name in PART_NAMES if name in source}


def origin_hint(source: Mapping[str, Any]) -> str:
    """End of a message about missing data: where they can be obtained, if the source says so."""
    return f" ({source['obtain']})" if source.get("obtain") else ""
