"""The code blocks, links and headings of the Markdown files in the repository."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)\s*")
NOT_RUN = re.compile(r"<!-- not run:\s*(?P<reason>.*?)\s*-->")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of its first line of code, from 1.
        reason: Why it is not run; None where it is.
    """

    path: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The command lines of a block that has nothing else, in words; comments are left out."""
        if self.language not in ("", "sh"):
            return []
        lines = [shlex.split(line, comments=True) for line in self.text.replace("\\\n", " ").splitlines()]
        lines = [words for words in lines if words]
        return lines if lines and (self.language == "sh" or lines[0][0] in ("cil", "make")) else []


def pages() -> list[Path]:
    """The Markdown files that are documentation."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> Iterator[Block]:
    """All fenced blocks of all pages, in order."""
    for path in pages():
        yield from _blocks_of(path)


def _blocks_of(path: Path) -> Iterator[Block]:
    lines = path.read_text().splitlines()
    start, language, indent = 0, None, ""
    for number, line in enumerate(lines, 1):
        fence = FENCE.fullmatch(line)
        if language is None and fence:
            start, language, indent = number, fence["language"], fence["indent"]
        elif language is not None and line.strip() == "```":
            code = "\n".join(row.removeprefix(indent) for row in lines[start : number - 1])
            above = next((row for row in reversed(lines[: start - 1]) if row.strip()), "")
            said = NOT_RUN.fullmatch(above.strip())
            yield Block(path, start + 1, language, code, said["reason"] if said else None)
            language = None
    assert language is None, f"{path}:{start}: the block has no end"


def without_code(path: Path) -> str:
    """The text of a page without its blocks, and without what stands in code spans."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]+`", "code", text)


def links(path: Path) -> list[str]:
    """Targets of the links of a page that stay in the repository."""
    found = [match["target"] for match in LINK.finditer(without_code(path))]
    return [target for target in found if "://" not in target and not target.startswith("mailto:")]


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
