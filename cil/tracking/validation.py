"""Is a record what records of its kind look like? The types say so: shared ones, and those of the kind."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_type_hints

from cil import plugins
from cil.errors import ConfigError
from cil.tracking.storage import in_short

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

FINISHED = ("finished",)
UNFINISHED = ("running", "interrupted", "failed", "over_budget")
STATUSES = (*FINISHED, *UNFINISHED)
Place = tuple[str | int, ...]


class RecordedKind(Hashable, Protocol):
    """The part of a kind of run that says what its records hold; ``cil.kinds`` has the whole protocol."""

    name: str

    def identity_type(self) -> type:
        """TypedDict of what makes a run of this kind that run; its ``kind`` is the literal name."""
        ...

    def results_type(self) -> type:
        """TypedDict of the results of a run that has finished."""
        ...


def content_type(kind: RecordedKind, finished: bool) -> type:
    """TypedDict of ``record.json`` of a kind; where a run has not finished, any of the results may be missing."""
    from typing import NotRequired

    import typing_extensions

    from cil.tracking.record_types import Environment, LogPlace

    typed_dict: Any = typing_extensions.TypedDict  # type checkers know it as a class statement alone
    results = kind.results_type()
    if not finished:
        hints = get_type_hints(results, include_extras=True)
        fields: dict[str, Any] = {name: NotRequired[_bare(hint)] for name, hint in hints.items()}
        results = typed_dict(f"{results.__name__}SoFar", fields)
    parts = {
        "schema_version": int,
        "status": Literal[FINISHED if finished else UNFINISHED],
        "error": str | None,
        "identity": kind.identity_type(),
        "environment": Environment,
        "results": results,
        "log": NotRequired[LogPlace],
        "sha256": NotRequired[str],
    }
    whole: type = typed_dict(f"{kind.name.title()}Record{'' if finished else 'SoFar'}", parts)
    return whole


def first_problem(content: Mapping[str, Any]) -> str | None:
    """What is wrong with the content of a ``record.json``, in words that follow its path; None where all is well.

    Records of a kind that is not installed are not looked into beyond the name of the kind.
    """
    identity = content.get("identity")
    if not isinstance(identity, dict):
        return _words(("identity",), ["a dictionary"], content)
    name = identity.get("kind")
    if not isinstance(name, str):
        return _words(("identity", "kind"), ["a string"], content)
    try:
        kind: RecordedKind = plugins.find("cil.kinds", name)
    except ConfigError:
        parts = (part for part in ("environment", "results") if not isinstance(content.get(part), dict))
        return next((_words((part,), ["a dictionary"], content) for part in parts), None)
    return _problem(_adapter(kind, content.get("status") in FINISHED), content)


def _problem(adapter: TypeAdapter[Any], content: Mapping[str, Any]) -> str | None:
    from pydantic import ValidationError

    try:
        adapter.validate_python(content, strict=True)
    except ValidationError as error:
        found: dict[Place, list[str]] = {}
        for detail in error.errors(include_url=False, include_context=False):
            found.setdefault(_place(detail, content), []).append(detail["msg"])
        place = max(found, key=len)  # of several that a union gives for one value, the one inside it
        return _words(place, found[place], content)
    return None


def _place(detail: ErrorDetails, content: Any) -> Place:
    """Keys and indices that lead to an error: those of its location that are no names of members of a union."""
    place: list[str | int] = []
    missing = detail["type"] == "missing"
    for step in detail["loc"][: -1 if missing else None]:
        known = step in content if isinstance(content, dict) else isinstance(content, list) and isinstance(step, int)
        if known:
            place.append(step)
            content = content[step]
    return (*place, detail["loc"][-1]) if missing else tuple(place)


def _words(place: Place, errors: Sequence[str], content: Any) -> str:
    """``has no identity.budget``, or ``identity.seed is "x", expected an integer``."""
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    for step in place:
        if isinstance(content, dict) and step not in content:
            return f"has no {name}"
        content = content[step]
    said = (text.removeprefix("Input should be ").replace("a valid integer", "an integer") for text in errors)
    expected = [text.replace("valid ", "") for text in said]
    return f"{name} is {in_short(content)}, expected {' or '.join(dict.fromkeys(expected))}"


def prepare(kind: RecordedKind) -> None:
    """Make what reads records of a kind, a third of a second: before processes are forked that each would make it."""
    for finished in (True, False):
        _adapter(kind, finished)


@cache
def _adapter(kind: RecordedKind, finished: bool) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # takes a tenth of a second: after everything that can do without

    return TypeAdapter(content_type(kind, finished))


def _bare(hint: Any) -> Any:
    """A type without the mark that a key may be missing."""
    from typing import NotRequired, get_origin

    return hint.__args__[0] if get_origin(hint) is NotRequired else hint
