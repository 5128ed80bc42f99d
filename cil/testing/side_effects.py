"""Side effects of code while it runs: files, sockets, processes, a search through the interpreter's objects.

Python's own audit events tell of whatever Python opens; libraries that open files without Python are named here.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from unittest import mock

import safetensors
import safetensors.torch
import torch

from cil.contract import Holder, Phase, Search, Settings
from cil.contract.frozen import BOOKKEEPING
from cil.data import Samples

L = TypeVar("L", bound=Holder)

_EVENTS = {  # audit events that no hook may raise, and what they mean
    "gc.get_objects": "searches the interpreter's objects (gc.get_objects)",
    "gc.get_referrers": "searches the interpreter's objects (gc.get_referrers)",
    "gc.get_referents": "searches the interpreter's objects (gc.get_referents)",
    "mmap.__new__": "maps memory that outlives it (mmap)",
    "sqlite3.connect": "opens the database {0}",
    "ctypes.dlopen": "loads the library {0}",
    "os.system": "starts the process {0}",
    "subprocess.Popen": "starts the process {0}",
    **dict.fromkeys(("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"), "starts a process"),
    **dict.fromkeys(("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"), "opens a socket"),
    **dict.fromkeys(("os.listdir", "os.scandir"), "lists the folder {0}"),
    "os.mkdir": "makes the folder {0}",
    "os.rename": "renames the file {0}",
    **dict.fromkeys(("os.remove", "os.rmdir"), "removes the file {0}"),
    **dict.fromkeys(("os.link", "os.symlink"), "links the file {0}"),
    **dict.fromkeys(("os.truncate", "os.utime", "os.chmod", "os.chown"), "changes the file {0}"),
    **dict.fromkeys(("os.setxattr", "os.removexattr"), "changes attributes of the file {0}"),
    **dict.fromkeys(("os.getxattr", "os.listxattr"), "reads attributes of the file {0}"),
}
_LOADING = ("os.listdir", "os.scandir", "os.mkdir", "os.rename", "ctypes.dlopen", "open")  # what imports do
_CODE = (".py", ".pyc", ".so", ".dll", ".pyd")
_MACHINE = ("/proc/", "/sys/", "/etc/", "/dev/null", "/dev/urandom", "/dev/random")  # facts about the machine
_METADATA = (f".dist-info{os.sep}", f".egg-info{os.sep}")  # of installed packages: their versions
_COMPILERS = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch/_inductor", "torch/_dynamo", "triton"))
_CACHES = (str(Path(tempfile.gettempdir()) / "torchinductor_"), str(Path("~/.triton").expanduser()))
_FINDERS = ("<frozen importlib", str(Path(importlib.__file__).resolve().parent), str(pkgutil.__file__))  # of modules
_STANDARD = Path(os.__file__).parent
_LIBRARIES = tuple({f"{Path(place).resolve()}{os.sep}" for place in (sys.prefix, sys.base_prefix, _STANDARD)})
_OWN = str(Path(__file__).resolve().parents[1]) + os.sep  # this package

_HOOK = "_watched_hook"  # name of the function that is around a hook
_watch = threading.local()  # ``depth``: hooks that this thread is inside of; threads of the engine are in none
_seen: list[str] | None = None
_stores: ExitStack | None = None  # undoes what was done to classes of stores


def hooks_of(base: type[Holder]) -> tuple[str, ...]:
    """Names of all public methods of a base class of learners.

    Without ``phases``, whose parts are watched one by one, and what no learner may override.
    """
    left = ("phases", *BOOKKEEPING)
    named = (name for kind in base.__mro__ for name, value in vars(kind).items() if inspect.isfunction(value))
    return tuple(dict.fromkeys(name for name in named if not name.startswith("_") and name not in left))


@contextmanager
def watching(sources: Collection[type] = ()) -> Iterator[list[str]]:
    """Collect, one line each, the side effects of watched code that a learner may not have.

    Args:
        sources: Classes of stores of the stream: where they read their images, nobody else does.
    """
    global _seen, _stores
    _install()
    old, _seen = (_seen, _stores), []
    try:
        with ExitStack() as stack:
            _stores = stack
            for place, name, replacement in _openers():
                stack.enter_context(mock.patch.object(place, name, replacement))
            for kind in sources:
                _watch_store(kind, outside)
            yield _seen
    finally:
        _seen, _stores = old


def _openers() -> list[tuple[Any, str, Any]]:
    """What opens files without an audit event, in every module that has it: place, name, ours.

    ``torch.save`` and ``torch.load`` look theirs up in ``torch._C`` when they are called, however they were imported.
    """
    functions = {
        "writes": (safetensors.serialize_file, torch.jit.save),
        "reads": (safetensors.safe_open, torch.jit.load, torch.from_file),
    }
    ours = {id(work): (work, _reported(work, does)) for does, works in functions.items() for work in works}
    found: list[tuple[Any, str, Any]] = [
        (torch._C, "PyTorchFileReader", _reported_class(torch._C.PyTorchFileReader, "reads")),
        (torch._C, "PyTorchFileWriter", _reported_class(torch._C.PyTorchFileWriter, "writes")),
        (threading.Thread, "start", _reported_start(threading.Thread.start)),
        (torch.UntypedStorage, "from_file", staticmethod(_reported(torch.UntypedStorage.from_file, "maps"))),
    ]
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in ours and value is ours[id(value)][0]:
                found.append((module, name, ours[id(value)][1]))
    return found


def _reported(work: Callable[..., Any], does: str) -> Callable[..., Any]:
    """``work``, reported when watched code calls it with a file."""

    @wraps(work)
    def run(*args: Any, **kwargs: Any) -> Any:
        _report_call(does, args, kwargs)
        return work(*args, **kwargs)

    return run


def _reported_start(start: Callable[..., None]) -> Callable[..., None]:
    """``Thread.start``, reported when the author's code calls it: in another thread nobody is watched."""

    @wraps(start)
    def run(thread: threading.Thread) -> None:
        if _depth() and _seen is not None and _authors_own():
            _seen.append(f"starts a thread{_place()}")
        start(thread)

    return run


def _reported_class(kind: Any, does: str) -> Any:
    """A class, reported when watched code makes an object of it with a file."""

    class Reported(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            _report_call(does, args, kwargs)
            super().__init__(*args, **kwargs)

    return Reported


def _report_call(does: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    files = [value for value in (*args, *kwargs.values()) if isinstance(value, str | os.PathLike)]
    if _depth() and _seen is not None and files:  # a buffer in memory is no file
        _seen.append(f"{does} the file {files[0]!s}{_place()}")


def watched(make: Callable[..., L], hooks: Sequence[str]) -> Callable[..., L]:
    """``make``, watched, and making learners whose hooks and phases are watched."""

    def made(*args: Any) -> L:
        learner: L = inside(make)(*args)
        for name in hooks:
            object.__setattr__(learner, name, inside(_looked_up(learner, name)))
        phases: Callable[..., Iterator[Phase | Search]] = getattr(learner, "phases")  # noqa: B009

        def watched_phases(data: Any) -> Iterator[Phase | Search]:
            body = phases(data)
            while (phase := inside(next)(body, None)) is not None:
                yield _watched_search(phase) if isinstance(phase, Search) else _watched_phase(phase)

        object.__setattr__(learner, "phases", watched_phases)
        return learner

    return made


def _looked_up(learner: Any, name: str) -> Callable[..., Any]:
    """A hook of a learner that is looked up at each call: of some methods it is another in the first experience."""
    own = vars(learner).get(name)

    def hook(*args: Any, **named: Any) -> Any:
        found = own or inspect.getattr_static(type(learner), name).__get__(learner, type(learner))
        return found(*args, **named)

    return hook


def _watched_phase(phase: Phase) -> Phase:
    """A phase whose loss, training mode and pixels are watched."""
    for samples in [phase.data] if isinstance(phase.data, Samples) else phase.data.values():
        for store, _ in samples.parts:
            _watch_store(type(store), inside)
    mode = phase.train_mode
    return replace(phase, loss=inside(phase.loss), train_mode=None if mode is None else inside(mode))


def _watch_store(kind: Any, around: Callable[..., Any]) -> None:
    """Put ``inside`` or ``outside`` around what makes pixels of a class of stores; the first time counts."""
    if _stores is None or "_watched" in vars(kind):
        return
    _stores.enter_context(mock.patch.object(kind, "_watched", True, create=True))
    for name in ("pixels", "training_pixels"):
        _stores.enter_context(mock.patch.object(kind, name, around(getattr(kind, name))))


def _watched_search(search: Search) -> Search:
    """A search whose trials are watched."""

    def of(make: Callable[[Settings], Phase]) -> Callable[[Settings], Phase]:
        return lambda settings: _watched_phase(inside(make)(settings))

    return replace(search, trial=of(search.trial), refit=None if search.refit is None else of(search.refit))


def inside(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, watched while it runs."""

    @wraps(work)
    def _watched_hook(*args: Any, **kwargs: Any) -> Any:
        with _at_depth(_depth() + 1):
            return work(*args, **kwargs)

    return _watched_hook


def outside(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, not watched while it runs, whoever calls it."""

    @wraps(work)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _at_depth(0):
            return work(*args, **kwargs)

    return run


def _depth() -> int:
    return getattr(_watch, "depth", 0)


@contextmanager
def _at_depth(depth: int) -> Iterator[None]:
    held = _depth()
    _watch.depth = depth
    try:
        yield
    finally:
        _watch.depth = held


@cache
def _install() -> None:
    sys.addaudithook(_audit)  # cannot be taken off again; it does nothing while nobody watches


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None or not _depth():
        return
    if event == "open":
        said = _opened(*args)
    elif event in ("os.listdir", "os.scandir") and _text(args[0]).startswith(_OWN):
        said = ""  # the names of methods and models are looked for there
    elif event in _EVENTS:
        said = _EVENTS[event].format(*(f"{_text(item):.80}" for item in args[:1]))
    else:
        return
    if said and not (event in _LOADING and _importing()) and not (args and _compiling(args[0])):
        _seen.append(said + _place())


def _opened(file: Any, mode: Any, flags: Any) -> str:
    """What is forbidden about the opening of a file; empty where nothing is."""
    if not isinstance(file, str | bytes | os.PathLike):
        return ""  # a descriptor that is open already
    path, flags = os.fsdecode(file), flags if isinstance(flags, int) else 0
    if path == os.devnull:
        return ""
    if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or any(letter in (mode or "") for letter in "wax+"):
        return f"writes the file {path}"
    allowed = path.endswith(_CODE) or path.startswith(_MACHINE) or any(part in path for part in _METADATA)
    return "" if allowed else f"reads the file {path}"


def _text(item: Any) -> str:
    return os.fsdecode(item) if isinstance(item, str | bytes | os.PathLike) else repr(item)


def _frames() -> Iterator[FrameType]:
    """The frames of the hook that is at work, innermost first, without those of the watch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != _HOOK:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back


def _importing() -> bool:
    """True where a module of an installed package is looked for or run; the author's modules are code as hooks are."""
    for frame in _frames():
        if frame.f_code.co_filename.startswith(_FINDERS):
            return True
        if _is_authors(frame.f_code.co_filename):
            return False
    return False


def _is_authors(file: str) -> bool:
    """True for code that is neither of this package nor of an installed one."""
    return not file.startswith((*_LIBRARIES, _OWN, "<"))


def _compiling(file: Any) -> bool:
    """True where torch compiles kernels, in its own folder."""
    path = _text(file) if isinstance(file, str | bytes | os.PathLike) else ""
    if not path.startswith(_CACHES):
        return False
    return any(part in frame.f_code.co_filename for frame in _frames() for part in _COMPILERS)


def _authors_own() -> bool:
    """True where the author's code called what is going on, and not this package on its behalf."""
    called = (frame.f_code.co_filename for frame in _frames())
    return _is_authors(next((file for file in called if not file.startswith((*_LIBRARIES, "<"))), "<"))


def _place() -> str:
    """File and line of the author's code that is at work."""
    for frame in _frames():
        if _is_authors(frame.f_code.co_filename):
            return f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno}, in {frame.f_code.co_name})"
    return ""
