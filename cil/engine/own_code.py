"""The files that an own class is made of: its own, and what these import from the same folder or package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec, resolve_name
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")  # folders of modules that have nothing to do with each other


def files_of(module: str, path: Path) -> dict[str, Path]:
    """Files by name of module: that of a module, and of those that it imports, and these, from beside it.

    Beside it is the folder of a module, or of the package at its top. Packages that are installed are no own code.
    ``path`` is resolved.
    """
    deep = module.count(".") + (path.name == "__init__.py")
    folder = path.parents[deep]  # in which the module, or the package at its top, lies
    found, left = dict[str, Path](), [(module, path)]
    while left:
        name, file = left.pop()
        if name in found:
            continue
        found[name] = file
        for other in sorted(_imported(name, file)):
            first = other.partition(".")[0]
            own = first == module.partition(".")[0] if deep else folder.name not in INSTALLED and first != "cil"
            beside = (folder / f"{first}.py").is_file() or (folder / first).is_dir()  # nothing is imported to know
            if own and beside and (place := _place(other)) is not None:
                left.append((other, place))
    return found


def _imported(module: str, path: Path) -> Iterator[str]:
    """Names that may be modules in the import statements of a file."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    with suppress(SyntaxError, UnicodeDecodeError):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                with suppress(ImportError):
                    origin = resolve_name("." * node.level + (node.module or ""), package)
                    yield from (origin, *(f"{origin}.{alias.name}" for alias in node.names))


def _place(module: str) -> Path | None:
    """The file of a module in Python; None where it is none."""
    with suppress(ImportError, ValueError, AttributeError):
        spec = find_spec(module)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            return Path(spec.origin).resolve()
    return None
