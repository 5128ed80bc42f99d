"""Records made by hand, filled up to what their type asks for: a test writes the numbers that it is about."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict


def filled(value: Any, hint: Any, missing: bool = True) -> Any:
    """``value`` with something neutral under each key that a TypedDict needs, here and below.

    Args:
        missing: Fill here too; else only below the keys that are there.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is NotRequired:
        return filled(value, inner[0])
    if origin in (Union, UnionType):
        fitting = [one for one in inner if isinstance(value, dict if is_typeddict(one) else get_origin(one) or one)]
        return filled(value, fitting[0]) if fitting else value
    if is_typeddict(hint) and isinstance(value, dict):
        hints = get_type_hints(hint, include_extras=True)
        needed = {name: one for name, one in hints.items() if missing and hint.__total__}
        needed = {name: one for name, one in needed.items() if get_origin(one) is not NotRequired}
        whole = {**{name: neutral(one) for name, one in needed.items() if name not in value}, **value}
        return {name: filled(item, hints[name]) if name in hints else item for name, item in whole.items()}
    if origin is list and isinstance(value, list):
        return [filled(item, inner[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {name: filled(item, inner[1]) for name, item in value.items()}
    return value


def neutral(hint: Any) -> Any:
    """Nothing, of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return inner[0]
    if origin in (Union, UnionType):
        return None if NoneType in inner else neutral(inner[0])
    return {} if is_typeddict(hint) else (origin or hint)()
