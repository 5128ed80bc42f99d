"""Names of what can be plugged in, built in or by entry point. Nothing is imported until it is asked for."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any, Generic, TypeVar

from cil.errors import ConfigError, in_words, nearest

T = TypeVar("T")
Thing = TypeVar("Thing")

_say = logging.getLogger("cil")
_shadowed: list[EntryPoint] = []  # those that were said
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "cil.kinds": {
        "classes": "cil.kinds.classes:CLASSES",
        "tasks": "cil.kinds.tasks:TASKS",
        "adaptation": "cil.kinds.adaptation:ADAPTATION",
        "foreign": "cil.kinds.foreign:FOREIGN",
    },
    "cil.strategies": {  # bridges to other toolboxes: they are named, and strategy=all leaves them out
        "avalanche": "cil.interop.avalanche.strategy:AvalancheStrategy",
        "avalanche_bound": "cil.interop.avalanche.strategy:AvalancheBound",
    },
    "cil.streams": {"avalanche": "cil.interop.avalanche.benchmarks:avalanche_stream"},
}


@cache
def points(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of other packages in a group, such as ``cil.kinds``; malformed ones are said, and left out.

    Where two packages have one name, the first one's is used, and both are said.
    """
    found: dict[str, EntryPoint] = {}
    for point in _installed():
        if point.group != group:
            continue
        if EntryPoint.pattern.match(point.value) is None:
            _say.warning(f"{_described(point)} is malformed and left out; it must be module:object")
        elif (first := found.setdefault(point.name, point)) is not point and first.value != point.value:
            _say.warning(f"{_described(point)} is left out: {owner_of(first)} has that name too")
    return tuple(found.values())


def forget() -> None:
    """Look for other packages anew: one was installed, or its folder joined the path."""
    points.cache_clear()
    _installed.cache_clear()


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """Entry points of all packages, read once: their files lie in many folders."""
    try:
        found = entry_points()
        return tuple(point for group in found.groups for point in found.select(group=group))
    except Exception:  # one package's file of them cannot be read: each package alone
        readable: list[EntryPoint] = []
        for package in distributions():
            try:
                readable += package.entry_points
            except Exception as error:
                _say.warning(f"the entry points of {package.metadata['Name']} cannot be read, so left out: {error}")
        return tuple(readable)


def owner_of(point: EntryPoint) -> str:
    """The package that an entry point is of."""
    return point.dist.name if point.dist is not None else point.value.partition(":")[0].partition(".")[0]


def _described(point: EntryPoint) -> str:
    return f"entry point {point.group}: {point.name} = {point.value} of {owner_of(point)}"


def warn_if_shadowed(group: str, name: str, thing: object = None) -> None:
    """Say that a built-in thing (None: known to be one) is used where another package has the same name."""
    if thing is not None and str(getattr(thing, "__module__", "")).partition(".")[0] != "cil":
        return
    for point in points(group):
        if point.name == name and point.module.partition(".")[0] != "cil" and point not in _shadowed:
            _shadowed.append(point)
            _say.warning(f"{_described(point)} is left out: {name} is built in; give it another name")


def names(group: str) -> list[str]:
    """Names that ``find`` knows in a group: the built-in ones, then those of other packages."""
    return list(dict.fromkeys([*BUILT_IN.get(group, {}), *sorted(point.name for point in points(group))]))


def find(group: str, name: str) -> Any:
    """The object that a name stands for; a built-in name is never replaced by another package's.

    Raises:
        ConfigError: for an unknown name, or one whose package cannot be imported.

    >>> type(find("cil.kinds", "classes")).__name__  # doctest: +SKIP
    'Classes'
    """
    built_in = BUILT_IN.get(group, {}).get(name)
    if built_in is not None:
        return pkgutil.resolve_name(built_in)
    for point in points(group):
        if point.name == name:
            return load(point)
    raise ConfigError(f"{group} has no '{name}'; {nearest(name, names(group))}")


def load(point: EntryPoint) -> Any:
    """The object of an entry point.

    Raises:
        ConfigError: where its package cannot be imported, naming the place.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # whatever a package of others raises when it is imported
        raise ConfigError(
            f"{point.group} '{point.name}' ({point.value}) cannot be imported: {in_words(error)}"
        ) from error


def place_of(thing: object) -> str:
    """``module:name`` of what a package defines, or what else it is."""
    name = getattr(thing, "__qualname__", "")
    return f"{getattr(thing, '__module__', '')}:{name}" if name else repr(thing)


class Registry(Generic[T]):
    """Things of one kind by name: registered by a decorator here, named in an entry point by other packages.

    Args:
        kind: the kind in messages, such as ``stream``.
        group: entry-point group of other packages, such as ``cil.streams``; loaded when a name is asked for.
        built_in: lists the built-in names that are not registered before their module is imported.
        load: imports the module that registers a built-in name; called with any name that is not registered yet.
        accept: called with a name and what is to have it; raises ``ConfigError`` for what cannot be of this kind.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Callable[[], Iterable[str]] = lambda: (),
        load: Callable[[str], None] = lambda name: None,
        accept: Callable[[str, object], None] = lambda name, thing: None,
    ) -> None:
        self.kind, self.group, self._built_in, self._load, self._accept = kind, group, built_in, load, accept
        self.registered: dict[str, T] = {}
        self._loading: set[str] = set()

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Decorator that makes something known by ``name``; defined once more (in a notebook), it takes the place.

        Raises:
            ConfigError: where something else has the name.
        """

        def add(thing: Thing) -> Thing:
            known: dict[str, Any] = self.registered
            if not str(getattr(thing, "__module__", "")).startswith("cil."):
                self._load_once(name)  # a built-in thing has its name also where nobody has asked for it yet
            taken = known.get(name, thing)
            if taken is not thing and place_of(taken) != place_of(thing):
                owner = taken.__module__
                raise ConfigError(f"the {self.kind} name '{name}' is taken by {owner}; choose another")
            self._accept(name, thing)
            known[name] = thing
            return thing

        return add

    def _load_once(self, name: str) -> None:
        if name not in self.registered and name not in self._loading:  # its own module registers it, too
            self._loading.add(name)
            try:
                self._load(name)
            finally:
                self._loading.discard(name)

    def names(self) -> list[str]:
        """All names; nothing is imported for them."""
        return sorted({*self.registered, *self._built_in(), *(point.name for point in points(self.group))})

    def get(self, name: str) -> T | None:
        """The thing of that name; None where there is none. A registered name is never replaced by an entry point.

        Raises:
            ConfigError: where the package of an entry point cannot be imported.
        """
        if not isinstance(name, str):
            return None
        self._load_once(name)
        for point in points(self.group):
            if point.name == name and name not in self.registered:
                thing = load(point)
                if name not in self.registered:  # the import may have registered it
                    self.register(name)(thing)
        found = self.registered.get(name)
        if found is not None:
            warn_if_shadowed(self.group, name, found)
        return found

    def find(self, name: str, hint: str = "") -> T:
        """The thing of that name.

        Args:
            hint: end of the message for an unknown name, such as the key to change.

        Raises:
            ConfigError: for an unknown name, with the nearest known ones, or where a package cannot be imported.
        """
        found = self.get(name)
        if found is None:
            raise ConfigError(f"no {self.kind} '{name}'; {nearest(name, self.names())}{hint}")
        return found
