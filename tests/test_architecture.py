"""Which room may look into which (design, section 2)."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "cil"
LOW = {"errors", "plugins", "targets", "values"}  # any room may import these
ALLOWED = {
    "errors": set(),
    "plugins": set(),
    "targets": set(),
    "values": set(),
    "data": set(),
    "models": set(),
    "metrics": set(),
    "streams": {"data"},
    "memory": {"data"},
    "contract": {"memory", "data"},
    "strategies": {"contract", "models", "memory", "streams", "data"},
    "adapt": {"contract", "models", "memory", "streams", "data"},
    "tracking": {"metrics"},
    "engine": {"adapt", "strategies", "contract", "models", "memory", "streams", "data", "metrics", "tracking"},
    "report": {"tracking", "metrics"},
}
ALLOWED["interop"] = {*ALLOWED} - {"report"}  # bridges to other toolboxes: they are found by name
ALLOWED["testing"] = {*ALLOWED} - {"report", "interop"}
ALLOWED["kinds"] = {*ALLOWED}  # above the rooms that ask them: they are found by name
DOORS = {
    ("kinds", "commands.py"),
    ("kinds", "command_line.py"),
    ("kinds", "base.py"),
}  # asked by the command line alone
ALLOWED["api"] = {*ALLOWED}
ALLOWED["trained"] = {*ALLOWED}
ALLOWED["exchange"] = {*ALLOWED}
ALLOWED["adaptation"] = {*ALLOWED}
ALLOWED["cli"] = {*ALLOWED}
ALLOWED["comparison"] = {*ALLOWED}
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "hydra",
    "omegaconf",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "wandb",
    "rich",
}


def rooms() -> list[str]:
    return sorted({path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")} - {"__init__"})


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module == "cil"}
    return found


def file_of(module: str) -> Path | None:
    """The file that a module of the package is; None for a name inside a module."""
    place = ROOT.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()), None)


def files_looked_into(path: Path) -> set[Path]:
    """Files of the package that a file imports from, inside functions and for type checks too."""
    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names if alias.name.startswith("cil.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cil":
            module = str(node.module)
            found |= {file_of(f"{module}.{alias.name}") or file_of(module) for alias in node.names}
    return {file for file in found if file is not None}


def files_of(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))


def test_every_room_is_known():
    assert set(rooms()) <= set(ALLOWED)


@pytest.mark.parametrize("room", rooms())
def test_a_room_looks_only_where_it_may(room):
    for path in files_of(room):
        seen = {name.split(".")[1] for name in imports(path) if name.startswith("cil.")}
        door = {"cli", "api", "adaptation", "trained"} if (room, path.name) in DOORS else set()
        odd = seen - {room} - ALLOWED[room] - LOW - door
        assert not odd, f"{path.name} may not import {sorted(odd)}"


@pytest.mark.parametrize("room", rooms())
def test_imports_go_in_no_circle_within_a_room(room):
    files = files_of(room)
    try:
        graphlib.TopologicalSorter({path: files_looked_into(path) & {*files} for path in files}).prepare()
    except graphlib.CycleError as error:
        names = " -> ".join(str(path.relative_to(ROOT)) for path in error.args[1])
        pytest.fail(f"imports go in a circle: {names}")


def test_no_method_imports_another_method():
    shared = {"__init__", "base", "phase", "ranges", "registry"}
    methods = {path.stem for path in (ROOT / "strategies").glob("*.py")} - shared
    for name in methods:
        seen = {module.split(".")[2] for module in imports(ROOT / "strategies" / f"{name}.py") if module.count(".") >= 2
                and module.startswith("cil.strategies.")}  # fmt: skip
        assert not seen & methods, f"{name} imports {seen & methods}"


LIGHT = [ROOT / "__init__.py", ROOT / "errors.py", ROOT / "cli" / "main.py", *(ROOT / "kinds").glob("*/__init__.py")]


@pytest.mark.parametrize("path", LIGHT, ids=str)
def test_the_door_opens_without_heavy_imports(path):
    tree = ast.parse(path.read_text())
    at_top = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    at_top |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not {name.split(".")[0] for name in at_top} & HEAVY


def test_nothing_is_unpickled():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "weights_only=False" not in text, path
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, f"{path}: {line.strip()}"


def test_no_function_is_longer_than_a_screen():
    """80 lines, with its docstring."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80
    ]
    assert long == []
