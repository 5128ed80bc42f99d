"""A page that says what it was made of, so that it is not drawn again from the same records by the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

from cil.cli.names import PACKAGE, plugin_points
from cil.tracking import Record
from cil.tracking.housekeeping import CHECKPOINT, SNAPSHOT

CODE = (".py", ".css", ".js", ".json", ".bib")


def key_of_page(records: Iterable[Record], *words: str) -> str | None:
    """Digest of all that a page depends on: the files of its records, words on it, and the code that draws it.

    Returns:
        None where a plugin is installed, whose code may draw too.
    """
    if plugin_points():
        return None
    files = (path for record in records for path in _files(record.directory))
    return _digest_of(files, "\0".join([_code_digest(), *words]))


@cache
def _code_digest() -> str:
    """Of the code as it was when this process first asked."""
    return _digest_of((path for path in sorted(PACKAGE.rglob("*")) if path.suffix in CODE), version("matplotlib"))


def _digest_of(files: Iterable[Path], words: str) -> str:
    digest = hashlib.sha256(words.encode())
    for path in files:
        digest.update(f"\0{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    """Files of a run but for the tensors of its states: of those that a page shows, the sums are beside them."""
    for path in sorted(directory.rglob("*")):
        folder = path.relative_to(directory).parts[0]
        if path.is_file() and folder != SNAPSHOT and (folder != CHECKPOINT or path.suffix == ".json"):
            yield path


def signed(text: str, key: str | None) -> str:
    """A page with a last line that goes with its text and the key."""
    return text if key is None else f"{text}<!-- {_signature(text, key)} -->\n"


def is_current(path: Path, key: str | None) -> bool:
    """True where the file is a page with this key, and nobody has changed it."""
    if key is None or not path.is_file():
        return False
    text, mark, last = path.read_text(encoding="utf-8", errors="replace").rpartition("<!-- ")
    return bool(mark) and last == f"{_signature(text, key)} -->\n"


def _signature(text: str, key: str) -> str:
    return hashlib.sha256(f"{key}\0{text}".encode()).hexdigest()
