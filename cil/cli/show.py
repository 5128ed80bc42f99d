"""``cil show``: a stream as a sheet of pictures, a run as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cil.cli import environment
from cil.cli.arguments import split_options
from cil.errors import ConfigError
from cil.kinds.command_line import find_commands

MOST_IMAGES = 500  # in a row of the picture: its file then has 50,000 pixels a row
HELP = """
usage: cil show [key=value ...] [--out FILE] [--count N]
       cil show RUN_DIR

Writes a PNG with a few training images of each experience of a stream, or the same test images in each domain of a
corruption stream; or draws the accuracy of a run as text.

  cil show stream=split_cifar100 --out cifar.png
  cil show stream=mnist5k_corrupted stream.corruptions=all stream.severity=3
  cil show runs/mnist5k_b0_inc2/icarl-200exemplars-s0-0a1b2c3d4e5f

  cil show stream=embedded_tasks --out timeline.html

  --out FILE    the PNG; STREAM.png by default. FILE.html of a stream of tasks: its timeline, with images
  --count N     images of each experience, or domain
"""


def main(arguments: Sequence[str]) -> int:
    overrides, options, _ = split_options(arguments, {"--out": "", "--count": "8"})
    paths = [item for item in overrides if "=" not in item]
    if len(paths) > 1 or (paths and len(overrides) > 1):
        raise ConfigError(f"cil show has one run directory, or key=value; given {' '.join(overrides)}")
    if paths and (options["--out"] or options["--count"] != "8"):
        raise ConfigError("--out and --count are of streams; a page of a run is cil report RUN_DIR --html FILE")
    if paths:
        from cil.tracking import Record
        from cil.tracking.record import reading

        record = Record.load(paths[0])
        commands = find_commands(record.kind)
        with reading(record):
            text = commands.curve(record)
        print(text)
        return 0
    if not (options["--count"].isdigit() and 1 <= int(options["--count"]) <= MOST_IMAGES):
        raise ConfigError(
            f"--count is {options['--count']}; it must be a whole number of 1 or more, at most {MOST_IMAGES}"
        )
    environment.prepare()
    from cil.cli.build import build_stream
    from cil.cli.compose import compose
    from cil.streams.show import contact_sheet

    stream = build_stream(compose(overrides).config)
    commands, count = find_commands(stream.kind), int(options["--count"])
    out = Path(options["--out"] or f"{stream.name}.png")
    as_page = out.suffix == ".html"
    draw = getattr(commands, "stream_page", None) if as_page else contact_sheet
    if draw is None:
        raise ConfigError(f"--out {out}: a page is of a stream of tasks that tells the task, not of '{stream.name}'")
    path = draw(stream, out, count)
    print("\n".join([*commands.stream_lines(stream), f"{'page' if as_page else 'picture'}: {path}"]))
    return 0
