"""Side effects of code while it runs: files, sockets, processes, a search through the interpreter's objects."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import safetensors
import safetensors.torch
import torch

from cil.contract import Holder, Phase, Search, Settings

L = TypeVar("L", bound=Holder)

_FORBIDDEN = ("gc.get_objects", "gc.get_referrers", "socket.connect", "subprocess.Popen", "os.system", "mmap.__new__")
_CODE = (".py", ".pyc", ".so", ".dll", ".pth")
_LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(os.__file__).parent), *sys.path[1:])
_SYSTEM = tuple(
    f"{place}{os.sep}"  # with its end: /tmp/ci is not where /tmp/cil-... lies
    for place in (
        *(Path(place).resolve() for place in _LIBRARIES if place),
        *("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/opt"),
    )
)

_NOT_AUDITED: tuple[tuple[Any, str], ...] = (
    (torch, "save"),
    (torch, "load"),
    (safetensors.torch, "save_file"),
    (safetensors.torch, "load_file"),
    (safetensors, "safe_open"),
)

_depth = 0
_seen: list[str] | None = None
_installed = False


@contextmanager
def watching() -> Iterator[list[str]]:
    """Collect, one line each, the side effects of watched code that a learner may not have."""
    global _seen
    _install()
    old, _seen = _seen, []
    try:
        with ExitStack() as stack:
            for module, name in _NOT_AUDITED:
                stack.enter_context(mock.patch.object(module, name, _reported(name, getattr(module, name))))
            yield _seen
    finally:
        _seen = old


def _reported(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, which opens files without an audit event, reported when watched code calls it."""

    @wraps(work)
    def run(*args: Any, **kwargs: Any) -> Any:
        if _depth and _seen is not None:
            _seen.append(f"calls {name} on {args[-1] if 'save' in name else args[0]!s:.80}")
        return work(*args, **kwargs)

    return run


def watched(make: Callable[..., L], hooks: Sequence[str]) -> Callable[..., L]:
    """``make``, watched, and making learners whose hooks and phases are watched."""

    def made(*args: Any) -> L:
        learner: L = inside(make)(*args)
        for name in hooks:
            setattr(learner, name, inside(getattr(learner, name)))
        phases: Callable[..., Iterator[Phase | Search]] = getattr(learner, "phases")  # noqa: B009

        def watched_phases(data: Any) -> Iterator[Phase | Search]:
            body = phases(data)
            while (phase := inside(next)(body, None)) is not None:
                yield _watched_search(phase) if isinstance(phase, Search) else replace(phase, loss=inside(phase.loss))

        setattr(learner, "phases", watched_phases)  # noqa: B010
        return learner

    return made


def _watched_search(search: Search) -> Search:
    """A search whose trials are watched."""

    def of(make: Callable[[Settings], Phase]) -> Callable[[Settings], Phase]:
        def phase(settings: Settings) -> Phase:
            made: Phase = inside(make)(settings)
            return replace(made, loss=inside(made.loss))

        return phase

    return replace(search, trial=of(search.trial), refit=None if search.refit is None else of(search.refit))


def inside(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, watched while it runs."""

    @wraps(work)
    def run(*args: Any, **kwargs: Any) -> Any:
        global _depth
        _depth += 1
        try:
            return work(*args, **kwargs)
        finally:
            _depth -= 1

    return run


def _install() -> None:
    global _installed
    if not _installed:
        sys.addaudithook(_audit)  # cannot be taken off again; it does nothing while nobody watches
        _installed = True


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _depth or _seen is None:
        return
    if event in _FORBIDDEN:
        _seen.append(event)
    elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        path, flags = os.fsdecode(args[0]), args[2] if isinstance(args[2], int) else 0
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(c in (args[1] or "") for c in "wax+")
        if path == os.devnull or (path.startswith(tempfile.gettempdir()) and "/torch" in path):
            return
        if writes:
            _seen.append(f"writes the file {path}")
        elif not path.endswith(_CODE) and not path.startswith(_SYSTEM):
            _seen.append(f"reads the file {path}")
