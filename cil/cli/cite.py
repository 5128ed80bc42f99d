"""``cil cite``: the papers behind what runs used."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Any

import cil.report
from cil.cli.arguments import split_options
from cil.cli.names import METHODS
from cil.errors import ConfigError

HELP = """
usage: cil cite RUN_DIR ... [--bibtex]
       cil cite METHOD ... [--bibtex]

The papers of methods: of the runs at or under the folders, or of strategies and adapters by name. As text, each is
told as its class tells it, with where it departs from the paper; with --bibtex as entries for a bibliography.

  cil cite runs/compare-demo
  cil cite icarl tent --bibtex
"""
PAPERS = Path(cil.report.__file__).with_name("papers.bib")
SURVEY = "zhou2024survey"  # of budget.convention=survey and recipe=survey


def main(arguments: Sequence[str]) -> int:
    named, _, flags = split_options(arguments, {}, ["--bibtex"])
    if not named:
        raise ConfigError("cil cite needs run directories, or names of methods")
    used = [method for item in named for method in _methods(item)]
    if "--bibtex" in flags:
        keys = {SURVEY} if any(method.survey for method in used) else set()
        names = list(dict.fromkeys(method.name for method in used if method.toolbox is None))
        foreign = dict.fromkeys(f"% {method.words}" for method in used if method.toolbox)
        print("\n\n".join([*foreign, *entries(names, keys)]))
        if unknown := [name for name in names if not entries([name])]:
            print(f"cil: note: no entry is known for {', '.join(unknown)}", file=sys.stderr)
    else:
        print("\n".join(dict.fromkeys(method.words for method in used)))
    return 0


@dataclass(frozen=True)
class Used:
    """A method that was used.

    Attributes:
        group: ``strategy`` or ``adapter``.
        survey: True where it follows the survey's protocol.
        toolbox: Of a foreign record, whose code it was.
    """

    group: str
    name: str
    survey: bool = False
    toolbox: str | None = None

    @property
    def words(self) -> str:
        if self.toolbox is None:
            return f"{self.name}: {source(_class(self.group, self.name))}"
        return (
            f"{self.name} of {self.toolbox}: foreign, read from a log; which paper its code follows, and where it "
            f"departs, {self.toolbox} says (of the method of this name here: cil cite {self.name})"
        )


def _methods(item: str) -> list[Used]:
    if Path(item).exists():
        from cil.report.runs import RunSummary, find_runs

        runs = [RunSummary(record) for record in find_runs(item)]
        return [
            Used(run.kind.learner, run.learner, run.convention == "survey", run.identity.get("toolbox")) for run in runs
        ]
    for group in METHODS:
        if _class(group, item) is not None:
            return [Used(group, item)]
    raise ConfigError(f"{item} is no folder and no method; cil list strategies and cil list adapters name all")


def _class(group: str, name: str) -> Any:
    """The class of a method; None for one that is not registered here, as a record alone imports nothing."""
    from cil import adapt, strategies

    room = adapt if group == "adapter" else strategies
    return room.find(name) if name in room.names() else None


def source(method: Any) -> str:
    """What the docstring of a class says under ``Source:``, in one paragraph."""
    text = getdoc(method) or ""
    found = re.search(r"^Source:(.*?)(?:^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    if method is None or found is None:
        return "its class names no source"
    return " ".join(found[1].split())


def entries(methods: Iterable[str], keys: Iterable[str] = ()) -> list[str]:
    """BibTeX entries of the papers of methods, each once, without the field that names the methods."""
    wanted, always = set(methods), set(keys)
    return [text for key, of, text in _papers() if wanted & of or key in always]


@cache
def _papers() -> list[tuple[str, set[str], str]]:
    """Of each entry that is of methods: its key, their names, and its text."""
    found = []
    for line in PAPERS.read_text(encoding="utf-8").splitlines():
        of, key = re.search(r", methods=\{([^}]*)\}", line), re.match(r"@\w+\{(\w+)", line)
        if of and key:
            found.append((key[1], set(of[1].split()), _laid_out(line.replace(of[0], ""))))
    return found


def _laid_out(line: str) -> str:
    """A field a line; an arXiv number gets the name of its archive.

    >>> print(_laid_out("@misc{a, title={T}, eprint={1.2}}"))
    @misc{a,
      title={T},
      eprint={1.2}, archivePrefix={arXiv}
    }
    """
    head, *fields = re.split(r", (?=\w+=\{)", line.removesuffix("}"))
    fields = [f"{item}, archivePrefix={{arXiv}}" if item.startswith("eprint=") else item for item in fields]
    return ",\n  ".join((head, *fields)) + "\n}"
