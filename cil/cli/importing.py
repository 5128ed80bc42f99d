"""``cil import``: results of another toolbox as records, to be shown beside runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cil.cli.arguments import split_options
from cil.errors import ConfigError
from cil.kinds.command_line import find_commands

HELP = """
usage: cil import LOG_OR_FOLDER... [--into DIR]

Reads logs of PyCIL or PILOT, or all logs below a checkout, and leaves a record of each run below DIR (runs/foreign).
Reports then show them below tables of the same data set and split, and in tables of their own: marked as foreign,
without a bill, never ranked. A log that is damaged is named with its line and left out; the command then ends with 1.

  cil import PyCIL/logs/icarl/cifar100/0/10/reproduce_1993_resnet32.log
  cil import PyCIL --into runs/pycil
  cil report runs/ --html page.html

  --into DIR   where the records go; a run that is there already is not written again
"""


def main(arguments: Sequence[str]) -> int:
    from cil.interop.pycil import read_logs, write_record

    paths, options, _ = split_options(arguments, {"--into": "runs/foreign"})
    if not paths:
        raise ConfigError("cil import needs a log of PyCIL or PILOT, or a folder with logs")
    records, problems = [], list[str]()
    for path in paths:
        found, more = read_logs(path)
        records += [write_record(record, options["--into"]) for record in found]
        problems += more
    for record in records:
        print(find_commands(record.kind).summary(record))
    many = f"{len(records)} foreign record{'s' * (len(records) != 1)}"
    print(f"{many} below {options['--into']}; cil report shows them, and ranks none")
    for problem in problems:
        print(f"cil: left out: {problem}", file=sys.stderr)
    return int(bool(problems))
