"""Storage of records: plain JSON without secrets, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from cil.errors import TrainingError

HIDDEN = "[hidden]"
PARTIAL = ".cil-partial."  # how names of files begin that are being written
IDLE = 60.0  # seconds without a write, after which whoever wrote such a file was killed
_PASSWORDS = {"password", "passwords", "passwd", "passphrase", "secret", "secrets", "credential", "credentials"}
_KEYS = {"key", "keys", "apikey", "token", "tokens"}  # hyper-parameters have such names too


def plain(value: Any) -> Any:
    """The value in JSON types: numbers that are not finite become ``None``, arrays lists, keys text.

    Raises:
        TypeError: naming a type that has no JSON form.

    >>> plain({"a": (1, float("nan")), 2: [float("inf")]})
    {'a': [1, None], '2': [None]}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars too
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} has no place in a record: {value!r:.80}")


def without_secrets(value: Any) -> Any:
    """``value`` with everything hidden under a key like ``password``, ``hub_token`` or ``api_key``.

    Text under a last word ``key`` or ``token`` is replaced by eight digits of its SHA-256, as it may be a
    hyper-parameter (``embedding_key: mean``) that tells two runs apart; numbers there stay. A password leaves nothing.

    >>> without_secrets({"api_key": "abc", "tokens": 5, "hub": {"password": 123}, "monkey": "x"})
    {'api_key': '[hidden ba7816bf]', 'tokens': 5, 'hub': {'password': '[hidden]'}, 'monkey': 'x'}
    """
    if isinstance(value, Mapping):
        return {key: _hide(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    return value


def _hide(key: str, value: Any) -> Any:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", key)]
    if value is None or isinstance(value, (bool, Mapping)) or not words:
        return without_secrets(value)
    if _PASSWORDS & set(words):
        return HIDDEN
    items = value if isinstance(value, (list, tuple)) else [value]
    texts = any(isinstance(item, str) for item in items)
    if texts and words[-1] in _KEYS and not str(value).startswith("[hidden"):
        text = value if isinstance(value, str) else json.dumps(plain(value))
        return f"[hidden {hashlib.sha256(text.encode()).hexdigest()[:8]}]"
    return without_secrets(value)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of an identity; the order of its keys does not matter.

    >>> identity_hash({"a": 1, "b": 2}) == identity_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(plain(without_secrets(identity)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ: dotted path, old, new (``...`` where absent). None if equal.

    >>> first_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}})
    ('a.b.1', 2, 3)
    """
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key, ...), new.get(key, ...)) for key in [*old, *(k for k in new if k not in old)]]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(old, new, strict=True))]
    else:
        return None if old == new else (path, old, new)
    for key, before, after in pairs:
        found = first_difference(before, after, f"{path}.{key}" if path else key)
        if found:
            return found
    return None


def in_short(value: Any) -> str:
    """A JSON value on 80 characters; ``absent`` for ``...``.

    >>> in_short([1, None]), in_short(...)
    ('[1, null]', 'absent')
    """
    if value is ...:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write JSON so that a reader, or a crash, finds the old file or the new one.

    Raises:
        TrainingError: if the disk is full or the place cannot be written.
    """
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_laid_out(plain(value)))
        file.write("\n")


def _laid_out(value: Any, indent: str = "\n") -> Iterator[str]:
    """Parts of a JSON text with a line for each key, and each item of a list of more than numbers and texts.

    >>> print(*_laid_out({"matrix": [[1, None], [2.5, 3]], "classes": ["a", "b"], "none": {}}), sep="")
    {
     "matrix": [
      [1, null],
      [2.5, 3]
     ],
     "classes": ["a", "b"],
     "none": {}
    }
    """
    inner = f"{indent} "
    if isinstance(value, dict) and value:
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' if number else '{'}{inner}{json.dumps(key, ensure_ascii=False)}: "
            yield from _laid_out(item, inner)
        yield f"{indent}}}"
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        yield from (f"{',' if number else '['}{inner}{_one_line(item)}" for number, item in enumerate(value))
        yield f"{indent}]"
    else:
        yield _one_line(value)


def _one_line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file of these bytes, all or nothing; see ``replacing``."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """All or nothing: the file given is written, then flushed to disk and renamed to ``path``.

    Raises:
        TrainingError: where the disk is full or the place cannot be written; ``path`` is then unchanged.
    """
    from safetensors import SafetensorError

    temporary = path.with_name(f"{PARTIAL}{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_dir(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise TrainingError(f"{cannot_write(path, error)} (what was committed before is safe)") from error
        raise


def cannot_write(path: Path, error: Exception) -> str:
    """Why a file cannot be written, with the advice to make room where the disk is full."""
    text = str(error)
    found = re.search(r"os error (\d+)", text)  # safetensors says the number in its text
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    why = text if number is None else os.strerror(number)
    return f"cannot write {path}: {why}{'; make room' if number in (errno.ENOSPC, errno.EDQUOT) else ''}"


def remove_partial(folder: Path, idle: float = 0.0) -> None:
    """Remove what a process that was killed had begun to write in a folder; nothing else.

    Args:
        idle: Seconds for which nobody has written to it, where other processes may be at work in the folder.
    """
    for path in folder.glob(f"{PARTIAL}[0-9]*.*"):
        with suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime <= time.time() - idle:
                path.unlink()


def fsync_dir(path: str | Path) -> None:
    """Make renames inside a directory last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
