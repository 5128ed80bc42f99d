"""Which room may look into which (design, section 2)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "cil"
ALLOWED = {
    "errors": set(),
    "plugins": {"errors"},
    "targets": {"errors"},
    "data": {"plugins", "errors"},
    "models": {"plugins", "errors"},
    "metrics": {"errors"},
    "streams": {"data", "plugins", "errors"},
    "memory": {"data", "errors"},
    "contract": {"memory", "data", "errors"},
    "strategies": {"contract", "models", "memory", "streams", "data", "errors"},
    "adapt": {"contract", "models", "memory", "streams", "data", "errors"},
    "tracking": {"metrics", "plugins", "errors"},
    "engine": {
        "adapt",
        "strategies",
        "contract",
        "models",
        "memory",
        "streams",
        "data",
        "metrics",
        "tracking",
        "plugins",
        "errors",
    },
    "report": {"tracking", "metrics", "plugins", "errors"},
}
ENGINE_AND_BELOW = {*ALLOWED} - {"report"}
ALLOWED["testing"] = ENGINE_AND_BELOW
ALLOWED["api"] = ENGINE_AND_BELOW
ALLOWED["trained"] = ENGINE_AND_BELOW | {"api"}
ALLOWED["adaptation"] = ENGINE_AND_BELOW | {"api", "trained"}
ALLOWED["kinds"] = {*ALLOWED} - {"api", "trained", "adaptation"}
ALLOWED["cli"] = {*ALLOWED}
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


def files_of(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))


def test_every_room_is_known():
    assert set(rooms()) <= set(ALLOWED)


@pytest.mark.parametrize("room", rooms())
def test_a_room_looks_only_where_it_may(room):
    for path in files_of(room):
        seen = {name.split(".")[1] for name in imports(path) if name.startswith("cil.")}
        assert seen - {room} <= ALLOWED[room], f"{path.name} may not import {sorted(seen - {room} - ALLOWED[room])}"


def test_no_method_imports_another_method():
    shared = {"__init__", "base", "phase", "ranges", "registry"}
    methods = {path.stem for path in (ROOT / "strategies").glob("*.py")} - shared
    for name in methods:
        seen = {module.split(".")[2] for module in imports(ROOT / "strategies" / f"{name}.py") if module.count(".") >= 2
                and module.startswith("cil.strategies.")}  # fmt: skip
        assert not seen & methods, f"{name} imports {seen & methods}"


@pytest.mark.parametrize("path", [ROOT / "__init__.py", ROOT / "errors.py", ROOT / "cli" / "main.py"], ids=str)
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
