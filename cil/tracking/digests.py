"""SHA-256 sums of what a run writes: JSON and tensors carry their own, and say so when they were changed since.

The sum of a JSON file stands in it, under ``sha256``; that of a safetensors file in its metadata. Both cover the run
that the file belongs to, so that a file of another run, or of another place in the run, is found like a damaged one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"
LONG = 100  # lists or dictionaries in a list, from which on its text is made item by item
Part = tuple[str, str, tuple[int, ...], Any]  # name, type, shape, and bytes of a tensor


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with its own sum under ``sha256``, last.

    >>> unseal(sealed({"steps": 3})), unseal({**sealed({"steps": 3}), "steps": 4})
    (({'steps': 3}, True), ({'steps': 4}, False))
    """
    return {**content, SEAL: _sum_of(content)}


def unseal(content: dict[str, Any]) -> tuple[dict[str, Any], bool | None]:
    """Content as it was sealed, and whether it still has its sum; None where it never had one."""
    left = {key: value for key, value in content.items() if key != SEAL}
    return left, content[SEAL] == _sum_of(left) if SEAL in content else None


def _sum_of(content: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(content):
        digest.update(piece.encode())
    return digest.hexdigest()


def _pieces(value: Any, levels: int = 2) -> Iterator[str]:
    """The text of ``json.dumps`` in parts, as that of a long stream's matrices takes much memory as a whole.

    Args:
        levels: Of dictionaries that are taken apart: a record and its results. Lists are where they are long.

    >>> "".join(_pieces({"results": {"matrix": [[1.0], [2.5, None]], "none": []}, "n": {2: "x"}}))
    '{"results": {"matrix": [[1.0], [2.5, null]], "none": []}, "n": {"2": "x"}}'
    >>> long = [{"row": [index]} for index in range(LONG)]
    >>> "".join(_pieces({"a": long, "b": [long, 1]})) == json.dumps({"a": long, "b": [long, 1]})
    True
    """
    if levels and isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        ends, items = "{}", [(f"{json.dumps(key)}: ", item) for key, item in value.items()]
    elif isinstance(value, list) and len(value) >= LONG and isinstance(value[0], dict | list):
        ends, items = "[]", [("", item) for item in value]
    else:
        yield json.dumps(value)
        return
    for number, (name, item) in enumerate(items):
        yield f"{', ' if number else ends[0]}{name}"
        yield from _pieces(item, levels - 1 if levels else 0)
    yield ends[1]


def tensors_sum(owner: str, parts: Iterable[Part]) -> str:
    """The sum of named tensors in any order.

    Args:
        owner: The run and the name of the file.
    """
    digest = hashlib.sha256(owner.encode())
    for name, dtype, shape, data in sorted(parts, key=lambda part: part[0]):
        digest.update(f"\0{name}\0{dtype.rpartition('.')[2]}\0{shape}\0".encode())
        digest.update(data)
    return digest.hexdigest()


class FileSum:
    """The sum of a file that grows, of each of its bytes read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._length, self._digest = path, 0, hashlib.sha256()

    def whole(self) -> str:
        return self.upto(self._path.stat().st_size)

    def upto(self, length: int) -> str:
        """Sum of the first ``length`` bytes; from the start again where that is less than before."""
        if length < self._length:
            self._length, self._digest = 0, hashlib.sha256()
        with self._path.open("rb") as file:
            file.seek(self._length)
            while part := file.read(min(1 << 20, length - self._length)):
                self._digest.update(part)
                self._length += len(part)
        return self._digest.hexdigest()
