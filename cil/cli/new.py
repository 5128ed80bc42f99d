"""``cil new``: a small package with an own strategy, adapter, stream, metric or kind of run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from string import Template

from cil.cli.arguments import split_options
from cil.errors import ConfigError, nearest

HELP = """
usage: cil new strategy|adapter|stream|metric|kind NAME [--to DIR]

Writes a small package DIR/NAME (here, by default): one thing that works, its configuration, its test, and the entry
point that makes it known by name. Its tests pass at once; then replace what it does, and keep them green.

  cil new strategy my_idea
  pip install -e "my_idea[test]" && pytest my_idea
  cil compare strategy=replay,my_idea stream=split_digits seed=0,1

strategy  replay with smoothed labels        stream  digits in another order
adapter   scores divided by their running mean   metric  a number of the accuracy matrix
kind      runs that compare confidence with accuracy: evaluation, record, table, commands, checks
"""
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Made:
    """What is made: its name in words, the group of its entry point, the object there, the folder of its file in
    ``conf/``, and a command that tries it."""

    what: str
    group: str
    object: str
    conf: str
    try_it: str


REPLAY = "cil compare strategy=replay,$name stream=split_digits seed=0,1"
KINDS = {
    "strategy": Made("strategy", "strategies", "$Name", "strategy", REPLAY),
    "adapter": Made("adapter", "adapters", "$Name", "adapter", "cil check $name"),
    "stream": Made("stream", "streams", "$name", "stream", "cil show stream=$name"),
    "metric": Made("metric", "metrics", "$name", "", "cil compare strategy=replay,wa stream=split_digits seed=0,1"),
    "kind": Made("kind of run", "kinds", "KIND", "stream", "cil compare strategy=replay,wa stream=$name seed=0,1"),
}


def main(arguments: Sequence[str]) -> int:
    named, options, _ = split_options(arguments, {"--to": "."})
    if len(named) != 2:
        raise ConfigError(f"cil new needs one of {', '.join(KINDS)}, and a name: cil new strategy my_idea")
    what, name = named
    if what not in KINDS:
        raise ConfigError(f"cil new makes no '{what}'; {nearest(what, KINDS)}")
    _check(what, name)
    target = Path(options["--to"]) / name
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another name, or --to another folder")
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be made ({error.strerror}); give --to another folder") from None
    for path, text in package(what, name).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    words = {"name": name, "Name": _class_name(name)}
    print(f"{target}: a package, {KINDS[what].what}\n")
    print(f'pip install -e "{target}[test]" && pytest {target}')
    print(Template(KINDS[what].try_it).substitute(words))
    return 0


def _check(what: str, name: str) -> None:
    """Refuse a name that no module can have, or that something of that sort has already."""
    from cil.cli.names import known
    from cil.plugins import names

    if not re.fullmatch("[a-z_0-9]*[a-z0-9]", name) or not name.isidentifier() or iskeyword(name):  # pip's rule too
        raise ConfigError(
            f"the name is {name}; it must be a Python name in small letters from a to z, as my_idea, and not end with _"
        )
    group = KINDS[what].group
    taken = set(names(f"cil.{group}")) | set(known(group) if group in ("strategies", "adapters", "streams") else ())
    if name in taken:
        raise ConfigError(f"there is a {KINDS[what].what} {name} already (cil list); choose another name")


def _class_name(name: str) -> str:
    """
    >>> _class_name("my_idea")
    'MyIdea'
    """
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def package(what: str, name: str) -> dict[str, str]:
    """The files of a package: paths in it, and their text. A template of its own goes before a common one."""
    made, top = KINDS[what], f"cil_{name}"
    words = {"name": name, "Name": _class_name(name), "package": top, "distribution": top.replace("_", "-")}
    words |= {"what": made.what, "group": made.group, "module": what}
    words |= {"object": Template(made.object).substitute(words), "try_it": Template(made.try_it).substitute(words)}
    places = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "conf.yaml": f"{top}/conf/{made.conf}/{name}.yaml",
        "test.py": f"tests/test_{name}.py",
        "module.py": f"{top}/{what}.py",
    }
    found = {}
    for folder in ("common", what):
        for path in sorted((TEMPLATES / folder).glob("*.template")):
            place = places.get(path.stem, f"{top}/{path.stem}")
            found[place] = Template(path.read_text(encoding="utf-8")).substitute(words)
    return found
