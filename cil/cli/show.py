"""``cil show``: a stream as a sheet of pictures, a run as a curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.errors import ConfigError

if TYPE_CHECKING:
    from cil.streams import Stream
    from cil.streams.shifts import ShiftStream
    from cil.tracking import Record

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
WIDTH = 50
SHOWN = 20  # classes of a class order


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    overrides, options = split_options(arguments, {"--out": "", "--count": "8"})
    paths = [item for item in overrides if "=" not in item]
    if len(paths) > 1 or (paths and len(overrides) > 1):
        raise ConfigError(f"cil show has one run directory, or key=value; given {' '.join(overrides)}")
    if paths and (options["--out"] or options["--count"] != "8"):
        raise ConfigError("--out and --count are of streams; a page of a run is cil report RUN_DIR --html FILE")
    if paths:
        from cil.tracking import Record

        print(curve(Record.load(paths[0])))
        return 0
    if not options["--count"].isdigit():
        raise ConfigError(f"--count is {options['--count']}; it must be a whole number of 1 or more")
    environment.prepare()
    from cil.cli.build import build_stream
    from cil.cli.compose import compose
    from cil.streams.show import contact_sheet

    stream = build_stream(compose(overrides).config)
    out, count = Path(options["--out"] or f"{stream.name}.png"), int(options["--count"])
    path = _timeline(stream, out, count) if out.suffix == ".html" else contact_sheet(stream, out, count)
    print("\n".join(described(stream)))
    print(f"{'page' if out.suffix == '.html' else 'picture'}: {path}")
    return 0


def _timeline(stream: Stream | ShiftStream, path: Path, count: int) -> Path:
    """A page of a stream of tasks: years, domains, sizes, and a strip of training images of each."""
    from cil.kinds.tasks.timeline import write_timeline
    from cil.streams.show import strip

    described = stream.description()
    if not described.get("tasks"):
        raise ConfigError(f"--out {path}: a page is of a stream of tasks that tells the task, not of '{stream.name}'")
    strips = [strip(stream, index, count) for index in range(len(described["tasks"]))]  # type: ignore[arg-type]
    facts = {"fingerprint": described["fingerprint"][:12], "images": " × ".join(map(str, described["image_shape"]))}
    return write_timeline(stream.name, described["tasks"], strips, path, facts)


def described(stream: Stream | ShiftStream) -> list[str]:
    """What the stream is, in two lines; of tasks also a line for each."""
    from cil.streams.shifts import ShiftStream

    facts = stream.description()
    data = f"fingerprint {stream.fingerprint[:12]}, {facts['data']}"
    if isinstance(stream, ShiftStream):
        counts = sorted({segment.count for segment in stream.segments})
        each = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        total = sum(segment.count for segment in stream.segments)
        return [
            f"{stream.name}: {len(stream)} segments of {each} images, {total:,} in all, {stream.image_shape}",
            f"{data}; domains {', '.join(stream.domains)}",
        ]
    images = sum(sum(signature.counts.values()) for signature in stream.signatures)
    images_said = f"{images:,} training images {stream.image_shape}"
    if facts.get("tasks"):
        many = f"{len(stream)} tasks, {len(stream.classes)} classes in all"
        return [f"{stream.name}: {many}, {images_said}", data, "", *_tasks(facts["tasks"])]
    many = f"{len(stream)} experiences of {sizes([len(one.new_slots) for one in stream.signatures])} new classes"
    order = list(stream.order)
    more = ", ..." if len(order) > SHOWN else ""
    return [
        f"{stream.name}: {many}, {images_said}",
        f"{data}; class order {', '.join(map(str, order[:SHOWN]))}{more}",
    ]


def sizes(counts: Sequence[int]) -> str:
    """Classes that experiences bring, those of one size together.

    >>> sizes([50, 10, 10, 10]), sizes([10, 10]), sizes([2, 0, 3])
    ('50 + 3 x 10', '10', '2 + no + 3')
    """
    runs = [(value, len(list(same))) for value, same in groupby(counts)]
    named = [(str(value or "no"), many) for value, many in runs]
    if len(named) == 1:
        return named[0][0]
    return " + ".join(value if many == 1 else f"{many} x {value}" for value, many in named)


def _tasks(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each task: its classes, its images, and whose slots it has where it is a repeat."""
    rows = [("event", "year", "task", "domain", "kind", "classes", "train", "")]
    seen: set[str] = set()
    for event, task in enumerate(tasks, start=1):
        again = f"repeat of {task['dataset']}" if task["dataset"] in seen else ""
        seen.add(task["dataset"])
        train = f"{(task.get('counts') or {}).get('train', 0):,}"
        rows.append(
            (
                str(event),
                str(task["year"]),
                task["id"],
                task["domain"],
                task["kind"],
                str(task["classes"]),
                train,
                again,
            )
        )
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (0, 5, 6)  # numbers
    for row in rows:
        cells = (
            cell.rjust(wide[place]) if place in right else cell.ljust(wide[place]) for place, cell in enumerate(row)
        )
        yield "  ".join(cells).rstrip()


def curve(record: Record) -> str:
    """Bars of the accuracy on all classes seen, and the accuracy matrix."""
    results = record.results
    if record.identity.get("kind") == "adaptation":
        from cil.cli.adaptation import curve as of_adaptation

        return of_adaptation(record)
    if not results.get("accuracy_curve"):
        why = f": {record.error}" if record.error else ""
        return f"{record.directory}: {record.status}, no experience was evaluated{why}"
    told = bool(record.identity["stream"].get("tasks"))
    what = "mean score (100 - error) of the tasks so far, each right after its training" if told else "accuracy so far"
    lines = [f"{record.identity['strategy']} on {record.identity['stream']['name']}: {record.status}", "", what]
    for index, value in enumerate(results["accuracy_curve"]):
        bar = "#" * round(WIDTH * (value or 0.0) / 100)
        lines.append(f"{index + 1:>3} |{bar.ljust(WIDTH)}| {'-' if value is None else f'{value:.1f} %'}")
    lines += ["", f"{'score on task' if told else 'accuracy on experience'} (column) after learning (row), percent"]
    width = len(results["accuracy_matrix"][0])
    lines.append("    " + "".join(f"{column + 1:>6}" for column in range(width)))
    for index, row in enumerate(results["accuracy_matrix"]):
        lines.append(f"{index + 1:>3} " + "".join(f"{'-' if value is None else f'{value:.1f}':>6}" for value in row))
    return "\n".join(lines)


def split_options(
    arguments: Sequence[str], options: dict[str, str], flags: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Options with a value (``--out FILE`` or ``--out=FILE``) apart from everything else; flags are for the message."""
    found, rest, given = dict(options), [], list(arguments)
    while given:
        item = given.pop(0)
        name, equals, value = item.partition("=")
        if name in options:
            if not equals and not given:
                raise ConfigError(f"{name} needs a value")
            found[name] = value if equals else given.pop(0)
        elif item.startswith("-"):
            raise ConfigError(f"no option '{item}'; there is {', '.join((*options, *flags))}")
        else:
            rest.append(item)
    return rest, found
