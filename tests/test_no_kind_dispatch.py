"""The rooms that serve every kind of run ask its object, and know no kind by its name, its stream or its work."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cil import plugins

ROOT = Path(__file__).parents[1] / "cil"
ROOMS = ("engine", "report", "testing", "cli")
KINDS = {*plugins.BUILT_IN["cil.kinds"]}
LEARNERS = {"strategy", "adapter"}
OF_A_RUN = re.compile(r"\b(stream|record|run|identity)\b.*(\.kind|\['kind'\]|\.get\('kind'\))$")
ALLOWED = {  # of one learner, whatever the kind of run
    "cli/budget.py": "bills are told for strategies; what an adapter carries is told by cil run --dry-run",
    "cli/tuning_protocols.py": "settings of strategies are tuned, on streams of their classes",
}


def constants(node: ast.AST) -> set[object]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def asks(node: ast.AST) -> bool:
    """True for a node that compares with a kind, takes a stream or work by its class, or opens a kind's folder."""
    match node:
        case ast.Compare(left, _, others):
            sides = [ast.unparse(side) for side in (left, *others)]
            of_learner = any(".learner" in side for side in sides) and constants(node) & LEARNERS
            return bool(constants(node) & KINDS or of_learner or any(map(OF_A_RUN.search, sides)))
        case ast.MatchValue():
            return bool(constants(node) & KINDS)
        case ast.Call(ast.Name("isinstance" | "issubclass"), [_, classes]):
            return bool(re.search(r"\w(Stream|Work)\b", ast.unparse(classes)))
        case ast.Call(ast.Attribute(attr="get"), [ast.Constant("adapter"), *_]):
            return True
        case ast.Subscript(slice=ast.Constant("adapter"), ctx=ast.Load()):
            return True
        case ast.Import() | ast.ImportFrom():
            return bool(re.search(rf"cil\.kinds\.({'|'.join(KINDS)})\b", ast.unparse(node)))
    return False


def dispatches(tree: ast.AST) -> Iterator[str]:
    """Each place where code asks which kind of run it has."""
    for node in ast.walk(tree):
        if asks(node):
            yield ast.unparse(node)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_that_serves_every_kind_asks_for_none(room):
    found = {path.relative_to(ROOT).as_posix(): [*dispatches(ast.parse(path.read_text()))]
             for path in sorted((ROOT / room).rglob("*.py"))}  # fmt: skip
    found = {path: places for path, places in found.items() if places}
    assert {path for path in found if path not in ALLOWED} == set(), found
    assert {path for path in ALLOWED if path.startswith(room)} <= {*found}, "allowed, and no longer there"


@pytest.mark.parametrize(
    "code",
    [
        'record.kind == "adaptation"',
        "if stream.kind != other.kind: pass",
        'identity.get("kind") in names',
        'kind in ("classes", "tasks")',
        "isinstance(stream, Stream | TaskStream)",
        "issubclass(type(work), AdaptationWork)",
        'if config["adapter"]: pass',
        'config.get("adapter")',
        'job.learner == "adapter"',
        "from cil.kinds.tasks.work import TaskWork",
        'match kind:\n    case "tasks": pass',
    ],
)
def test_such_code_is_found(code):
    assert [*dispatches(ast.parse(code))]


def test_other_kinds_are_none_of_a_run():
    assert not [
        *dispatches(ast.parse('isinstance(stream, Stream) and entry.kind == "buffers" and kind.learner == other'))
    ]
