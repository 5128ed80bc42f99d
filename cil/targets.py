"""Objects named in plain data: ``{_target_: module.Name, ...arguments}`` and back."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import PurePath
from typing import Any

from cil.errors import CilError, ConfigError, nearest
from cil.errors import in_words as error_in_words
from cil.values import MOST_NUMBER, MOST_WHOLE, beyond_meaning

TARGET, PARTIAL = "_target_", "_partial_"
LISTS = (list, tuple, Sequence, Collection, Iterable)  # hints of what a list is given for


def resolve(target: str, key: str = TARGET) -> Any:
    """Import the object that ``module.Name`` (or ``module:Name``) names.

    Raises:
        ConfigError: where it cannot be imported.
    """
    if not isinstance(target, str):
        raise ConfigError(f"{key} is {target!r}; it must be module.Name")
    top, *path = target.replace(":", ".").split(".")
    try:
        found = import_module(top)
        for depth, name in enumerate(path):
            if not hasattr(found, name):  # a module that nobody imported yet
                _import_below(found, ".".join([top, *path[: depth + 1]]), f"{key}={target}")
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}={target} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # of the module itself, when it is imported
        if isinstance(error, CilError):
            raise
        raise ConfigError(f"{key}={target} cannot be imported: {error_in_words(error)}") from error
    return found


def _import_below(parent: Any, name: str, what: str) -> None:
    """Import a module that its package does not know yet; where there is none, say which name was meant."""
    owner, _, last = name.rpartition(".")
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and imports something that is not
            raise
        public = {item: value for item, value in vars(parent).items() if not item.startswith("_")}
        own = [item for item, value in public.items() if getattr(value, "__module__", None) == owner]
        known = public if hasattr(parent, "__path__") else own  # a package shows what its modules define
        raise ConfigError(f"{what}: {owner} has no {last}; {nearest(last, known)}") from error


def made(config: Any, key: str = "") -> Any:
    """Build the object that ``config`` describes: nested targets too, and what holds no target stays as it is.

    With ``_partial_: true`` the result is a ``functools.partial`` that waits for the remaining arguments.

    Raises:
        ConfigError: naming the key, for a target that cannot be imported and for arguments that it does not take.

    >>> made({"_target_": "collections.Counter", "a": 2})["a"]
    2
    """
    if isinstance(config, Mapping):
        inside = {name: made(value, f"{key}.{name}") for name, value in config.items() if name not in (TARGET, PARTIAL)}
        if TARGET not in config:
            return inside
        call = resolve(config[TARGET], f"{key}.{TARGET}" if key else TARGET)
        check_arguments(call, inside, key)
        return partial(call, **inside) if config.get(PARTIAL) else call(**inside)
    if isinstance(config, list):
        return [made(item, key) for item in config]
    return config


def refuse_targets(content: Any, where: str) -> None:
    """Refuse data from a file that name something to import: a record, a manifest and the like are never run.

    Raises:
        ConfigError: naming ``where`` and the key.

    >>> refuse_targets({"stream": {"builder": "class_incremental", "base": 0}}, "record.json")
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key in (TARGET, PARTIAL):
                raise ConfigError(f"{where} has {key}={value!r}: what a file names is not imported, and not called")
            refuse_targets(value, f"{where}: {key}")
    elif isinstance(content, list | tuple):
        for item in content:
            refuse_targets(item, where)


def described(value: Any) -> Any:
    """Plain data that say what ``value`` is: the inverse of ``made`` for partials, classes and functions.

    Raises:
        ConfigError: for an object that has no such form.

    >>> described(partial(described, value=(1, "a")))
    {'_target_': 'cil.targets.described', '_partial_': True, 'value': [1, 'a']}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, partial):
        names = list(inspect.signature(value.func).parameters)
        given = dict(zip(names, value.args, strict=False)) | value.keywords
        return {**described(value.func), **{name: described(item) for name, item in given.items()}}
    if isinstance(value, type) or inspect.isroutine(value):
        return {TARGET: f"{value.__module__}.{value.__qualname__}", PARTIAL: True}
    if is_dataclass(value):
        return {f.name: described(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")}
    raise ConfigError(f"a {type(value).__name__} cannot be written into a record; give a name, a class or a partial")


def check_arguments(call: Callable[..., Any], given: Mapping[str, Any], key: str) -> None:
    """Refuse arguments that ``call`` does not have, and values of another type than it declares.

    Raises:
        ConfigError: naming ``key.argument`` and the nearest known ones.
    """
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    known = [
        name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)
    ]
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    annotated: Any = call.__init__ if isinstance(call, type) else call  # type: ignore[misc]
    hints: dict[str, Any] = {}
    with suppress(Exception):  # annotations that name things which are imported for type checking only
        hints = typing.get_type_hints(annotated)
    for name, value in given.items():
        where = f"{key}.{name}" if key else name
        if name not in known and not free:
            offered = [item for item in known if parameters[item].default is not inspect.Parameter.empty]
            meant = nearest(name, offered or known, prefix=where.removesuffix(name))
            raise ConfigError(f"unknown key {where}; {_name(call)} has none; {meant}")
        hint = hints.get(name, Any)
        if not fits(value, hint):
            words = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
            must = nearest(str(value), words) if words else f"it must be {in_words(hint)}"
            raise ConfigError(f"{where} is {value!r}; {must}")
        if beyond_meaning(value):
            raise ConfigError(
                f"{where} is {value!r}; numbers must be finite, at most {MOST_NUMBER:g}, and whole ones {MOST_WHOLE:,}"
            )


def _name(call: Any) -> str:
    return getattr(call, "__name__", type(call).__name__)


def fits(value: Any, hint: Any) -> bool:
    """True if a plain value fits a type hint; hints that say nothing about plain values fit all.

    >>> fits(1, float), fits(True, float), fits(None, int | None), fits("a", float | str), fits([1], list[str])
    (True, False, True, True, False)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, item) for item in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in LISTS:
        items = [item for item in arguments if item is not ...]
        listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return listed and (not items or all(any(fits(v, h) for h in items) for v in value))
    if hint in (None, types.NoneType):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if isinstance(hint, type) and issubclass(hint, PurePath):
        return isinstance(value, str | PurePath)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint is Any:
        return True
    if isinstance(value, Mapping) and TARGET in value:
        return True  # it is judged when it is built
    if typing.is_typeddict(hint):
        return isinstance(value, Mapping)
    if isinstance(hint, type) and (value is None or isinstance(value, bool | int | float | str | list | Mapping)):
        return _is_a(value, hint)
    return True  # built objects are judged by whoever takes them


def _is_a(value: Any, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that is for type checkers alone: no plain value has methods that one asks for
        return False


_ITEMS = {float: "numbers", int: "whole numbers", bool: "true or false", str: "texts"}


def in_words(hint: Any) -> str:
    """A type hint in words.

    >>> in_words(float | None), in_words(typing.Literal["a", "b"])
    ('a number or null', 'a or b')
    """
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", types.NoneType: "null"}
    if hint in words:
        return words[hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        every = typing.get_args(hint)
        plain = [item for item in every if item in words or typing.get_origin(item) is not None]
        return " or ".join(dict.fromkeys(map(in_words, every if plain in ([], [types.NoneType]) else plain)))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in LISTS:
        items = {_ITEMS[item] for item in typing.get_args(hint) if item in _ITEMS}
        return f"a list of {' or '.join(sorted(items))}" if items else "a list"
    return f"an object of the class {hint.__name__}" if isinstance(hint, type) else str(hint)
