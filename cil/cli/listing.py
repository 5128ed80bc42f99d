"""``cil list``: what there is, and where it is from."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Sequence

from cil.cli.formats import in_columns
from cil.cli.names import KINDS, PACKAGE, Known, known
from cil.errors import ConfigError, nearest

LISTED = (*KINDS, "plots")
HELP = f"""
usage: cil list [{" | ".join(LISTED)}]

Names that the configuration takes, and who brings them: what is built in, and the packages that are installed beside.
Plots are those of reports, with the kind of run that has them.
Any timm model is known too: model=timm model.name=timm:NAME; CLIP: model=clip model.name=clip:ARCHITECTURE/TAG.
"""


def main(arguments: Sequence[str]) -> int:
    for kind in arguments:
        if kind not in LISTED:
            raise ConfigError(f"cil list has no kind '{kind}'; {nearest(kind, LISTED)}")
    columns = shutil.get_terminal_size((160, 24)).columns
    for kind in arguments or LISTED:
        print(kind)
        found = plots() if kind == "plots" else known(kind)
        if not found:
            print("  none but those that are built in" if kind == "metrics" else "  none")
        for line in in_columns([(f"  {name}", item.origin, item.about) for name, item in found.items()], right=()):
            print(line[:columns])
    return 0


def plots() -> dict[str, Known]:
    """Plots of reports by title: read off the functions of the kinds of run that make a ``Picture``, not imported."""
    found = {}
    for path in sorted((PACKAGE / "kinds").glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.returns and "Picture" in ast.unparse(node.returns):
                about = (ast.get_docstring(node) or "").partition("\n")[0]
                for title in _titles(node):
                    found[title] = Known(title, path.parent.name, about)
    return dict(sorted(found.items()))


def _titles(function: ast.FunctionDef) -> list[str]:
    """First of the three things that it returns; what is filled in is three dots."""
    tuples = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    first = [value.elts[0] for value in tuples if isinstance(value, ast.Tuple) and len(value.elts) == 3]
    return [_text(one) for one in first if isinstance(one, ast.Constant | ast.JoinedStr)]


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
