"""Write the page of each method, docs/methods/NAME.md: its docstring, its configuration file, its measured card.

    python docs/make_methods.py            # writes the pages, and costs.md with all cards
    python docs/make_methods.py --check    # names the pages that are out of date, and ends with 1 if there are any

Source is read as text, so that no method is imported. What stands below the heading ``Equations`` is written by hand
and kept. The cards are measured by ``benchmarks/method_cards.py``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

import cards

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "methods"
COSTS = PAGES / "costs.md"
GROUPS = {"strategy": "strategies", "adapter": "adapters"}
HAND = "\n## Equations\n"
SECTION = re.compile(r"(Args|Source|Raises|Returns|Yields|Attributes):\s*(.*)")
KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z_0-9]+):(?: +(?P<value>.*))?$")


@dataclass(frozen=True)
class Method:
    """A method: its name, the group of its configuration, its class and where that stands."""

    name: str
    group: str
    path: Path
    class_name: str
    docstring: str
    facts: frozenset[str]

    @property
    def page(self) -> Path:
        """The page."""
        return PAGES / f"{self.name}.md"

    @property
    def configuration(self) -> Path:
        """The file of its hyperparameters."""
        return ROOT / "conf" / self.group / f"{self.name}.yaml"


def methods() -> list[Method]:
    """All strategies and adapters that have a configuration file."""
    found = []
    for group in GROUPS:
        for path in sorted((ROOT / "conf" / group).glob("[!_]*.yaml")):
            target = re.search(r"^_target_: (\S+)", path.read_text(), re.MULTILINE)
            assert target, f"{path} has no _target_"
            module, _, class_name = target[1].rpartition(".")
            source = ROOT / (module.replace(".", "/") + ".py")
            tree = ast.parse(source.read_text())
            node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
            docstring = cleandoc(ast.get_docstring(node) or "")
            found.append(Method(path.stem, group, source, class_name, docstring, frozenset(_flags(node))))
    return found


def _flags(node: ast.ClassDef) -> Iterator[str]:
    """Names of class attributes that are True."""
    for item in node.body:
        value = getattr(item, "value", None)
        if isinstance(value, ast.Constant) and value.value is True:
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                yield item.targets[0].id
            elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                yield item.target.id


def sections(docstring: str) -> dict[str, str]:
    """The parts of a docstring by heading; what comes before the first is ``""``.

    What follows a heading and is indented like it, as a last paragraph after ``Args``, belongs to ``""``.
    """
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for line in docstring.splitlines():
        heading = SECTION.fullmatch(line)
        if heading:
            name = heading[1]
            parts.setdefault(name, []).extend([heading[2]] if heading[2] else [])
        else:
            if line and not line.startswith(" "):
                name = ""
            parts[name].append(line)
    return {key: cleandoc("\n".join(lines)).strip() for key, lines in parts.items()}


def hyperparameters(path: Path) -> list[tuple[str, str, str]]:
    """Key, default and comment of each hyperparameter in a configuration file, read as text."""
    rows: list[tuple[str, str, str]] = []
    above: list[str] = []  # keys that the line stands under
    for line in path.read_text().splitlines():
        code, _, comment = line.partition(" #")
        match = KEY.fullmatch(code.rstrip())
        if line.lstrip().startswith("#") or not match:
            continue
        if match["key"] == "defaults":
            bases = (path.with_name(f"{base}.yaml") for base in re.findall(r"\w+", match["value"] or ""))
            rows += [row for base in bases if base.exists() for row in hyperparameters(base)]
            continue
        if match["key"].startswith("_"):
            continue
        above = [*above[: len(match["indent"]) // 2], match["key"]]
        if match["value"] is not None:
            rows.append((".".join(above), match["value"].strip(), comment.strip()))
    return rows


def equations(page: Path) -> str:
    """What is written by hand on a page."""
    text = page.read_text() if page.exists() else ""
    return text[text.index(HAND) + 1 :] if HAND in text else f"{HAND.lstrip()}\nNone: see the code.\n"


def rendered(method: Method) -> str:
    """The page of a method."""
    parts = sections(method.docstring)
    code, conf = (path.relative_to(ROOT).as_posix() for path in (method.path, method.configuration))
    facts = {
        "bound": "A bound: kept out of rankings, and a budget only reports on it.",
        "takes_task": "It is given the task of a test image.",
        "needs_source": "It reads labelled source data before it is deployed.",
    }
    lines = [
        f"<!-- Written by docs/make_methods.py; what stands below '{HAND.strip()}' is written by hand. -->",
        f"# `{method.name}`",
        "",
        _prose(_opening(method.configuration)),
        "",
        _prose(parts[""]),
        "",
    ]
    lines += [f"{text}\n" for fact, text in facts.items() if fact in method.facts]
    if parts.get("Source"):
        lines += ["**Source.** " + _prose(parts["Source"]), ""]
    rows = hyperparameters(method.configuration)
    if rows:
        lines += ["| hyperparameter | default | |", "| --- | --- | --- |"]
        lines += [f"| `{method.group}.{key}` | `{value}` | {_cell(note)} |" for key, value, note in rows]
        lines.append("")
    recipe = ROOT / "conf" / "recipe" / "by_strategy" / f"survey_{method.name}.yaml"
    more = (
        f", `recipe=survey` in [{recipe.name}](../../{recipe.relative_to(ROOT).as_posix()})" if recipe.exists() else ""
    )
    lines.append(f"Code: [`{method.class_name}`](../../{code}); configuration: [{conf}](../../{conf}){more}.")
    card = cards.read().get(method.name) if method.group == "strategy" else None
    lines += ["", *cards.lines_of(card)] if card else []
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n\n" + equations(method.page).rstrip() + "\n"


def _opening(path: Path) -> str:
    """The comment that a configuration file begins with."""
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:first] if not line.startswith("# @"))


def _prose(text: str) -> str:
    """Docstring text as Markdown: double backticks become single ones, and operators are not read as marks."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in text.splitlines())


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(p if p.startswith("`") else re.sub(r"([*<]|(?<!\w)_)", r"\\\1", p) for p in parts)


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def pages() -> dict[Path, str]:
    """Text of each page that is written here: of every method, and of all cards."""
    return {method.page: rendered(method) for method in methods()} | {COSTS: cards.table()}


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    stale = {page: text for page, text in pages().items() if not page.exists() or page.read_text() != text}
    if "--check" in arguments:
        for page in stale:
            print(f"{page.relative_to(ROOT)} is out of date: run python docs/make_methods.py")
        return bool(stale)
    for page, text in stale.items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
