"""What a boundary costs on long streams: CPU seconds, bytes written, bytes on disk and memory, boundary by boundary.

    python benchmarks/long_streams.py --experiences 300 --upto 130 --label before --out found.jsonl
    python benchmarks/long_streams.py --experiences 300 --label after --out found.jsonl
    python benchmarks/long_streams.py --experiences 1000 --label after --out found.jsonl
    python benchmarks/long_streams.py --plot long_streams.svg --out found.jsonl

Two classes of 8x8 noise an experience, ``simplecil`` on a small network without training: nearly all that is measured
is what the framework does around it. Each run is one line of the output. Bytes written are those that the process
handed to the system (Linux); they are null elsewhere. On one thread.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import cil
from cil.data import ArrayStore, Augment, Dataset, Samples
from cil.engine.driver import Run
from cil.strategies import find
from cil.streams import Stream

INCREMENT, TRAIN, TEST, SIDE = 2, 5, 2, 8  # classes an experience; images a class; pixels a side
SHOWN = (1, 10, 40, 80, 120, 130, 200, 300, 500, 700, 1000)  # experiences in the table


def make_stream(experiences: int) -> Stream:
    """Noise: nothing that is measured depends on what is seen."""
    classes, generator = INCREMENT * experiences, torch.Generator().manual_seed(0)

    def split(count: int) -> Samples:
        labels = torch.arange(classes).repeat_interleave(count)
        pixels = torch.randint(0, 256, (len(labels), 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return Samples(ArrayStore(pixels), labels)

    names = [str(label) for label in range(classes)]
    data = Dataset("noise", split(TRAIN), split(TEST), names, augment=Augment())
    return cil.class_incremental(data, increment=INCREMENT, order="natural", mean=[0.5], std=[0.25])


class Meter:
    """A logger that notes what was spent up to each boundary, and ends the run after some of them."""

    def __init__(self, folder: Path, upto: int | None) -> None:
        self.folder, self.upto, self.rows = folder, upto, [_spent()]
        self.publish: list[float] = []

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        self.rows = [_spent()]

    def log(self, kind: str, values: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
        if kind != "boundary":
            return
        self.rows.append(_spent())
        if len(self.rows) - 1 in SHOWN:
            self.rows[-1]["disk"] = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if self.upto is not None and len(self.rows) > self.upto:
            raise KeyboardInterrupt

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def finish(self, status: str) -> None: ...


def _spent() -> dict[str, Any]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    written = Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0]
    return {"cpu": time.process_time(), "rss": pages * os.sysconf("SC_PAGE_SIZE"), "written": int(written)}


def measure(experiences: int, upto: int | None, folder: Path) -> dict[str, Any]:
    """One run, and what it had spent at each boundary."""
    meter, publish = Meter(folder, upto), Run._publish

    def timed(run: Run, *given: Any) -> None:
        began = time.process_time()
        try:
            publish(run, *given)
        finally:
            meter.publish.append(time.process_time() - began)

    Run._publish = timed  # type: ignore[method-assign]
    stream, began = make_stream(experiences), time.process_time()
    try:
        method = partial(find("simplecil"), train_first=False)
        cil.train(method, stream, "smallconv", seed=0, run_dir=folder, loggers=[meter], threads=1)
    except KeyboardInterrupt:
        pass
    finally:
        Run._publish = publish  # type: ignore[method-assign]
    return {
        "rows": meter.rows,
        "publish": meter.publish,
        "total_cpu": time.process_time() - began,
        "record_bytes": (folder / "record.json").stat().st_size,
    }


def table(lines: Sequence[Mapping[str, Any]]) -> None:
    """One row for each experience shown, in Markdown."""
    for line in lines:
        rows, publish = line["rows"], line["publish"]
        done = f"{len(rows) - 1} of {line['experiences']} experiences"
        print(f"\n{line['label']}: {done}, {line['total_cpu']:.0f} CPU s in all, ", end="")
        print(f"record.json {line['record_bytes'] / 1e6:.2f} MB\n")
        print("| experience | CPU s a boundary | of it publish | MB written | MB on disk | RSS, MB |\n|" + " --- |" * 6)
        for count in (count for count in SHOWN if 2 < count < len(rows) or count == 1):
            near = range(max(1, count - 4), count + 1)  # this boundary and those just before
            cpu, mb = (sum(rows[i][name] - rows[i - 1][name] for i in near) / len(near) for name in ("cpu", "written"))
            own = sum(publish[i - 1] for i in near if i <= len(publish)) / len(near)
            print(f"| {count} | {cpu:.3f} | {own:.3f} | {mb / 1e6:.2f} | {rows[count]['disk'] / 1e6:.1f} "
                  f"| {rows[count]['rss'] / 1e6:.0f} |")  # fmt: skip


def plot(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """CPU seconds, bytes written and memory at each boundary."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cil"
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for line in lines:
        spent = {name: np.array([row[name] for row in line["rows"]]) for name in ("cpu", "written", "rss")}
        label = f"{line['label']}, {line['experiences']} experiences"
        near = np.ones(5) / 5  # a running mean of five boundaries
        axes[0].plot(np.convolve(np.diff(spent["cpu"]), near, "valid"), label=label, linewidth=1)
        axes[1].plot(np.convolve(np.diff(spent["written"]), near, "valid") / 1e6, label=label, linewidth=1)
        axes[2].plot(spent["rss"] / 1e6, label=label, linewidth=1)
    titles = ("CPU seconds a boundary", "MB written a boundary", "resident memory, MB")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="experience")
    for axis in axes[:2]:
        axis.set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure a stream, or print and plot what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiences", type=int, default=300)
    parser.add_argument("--upto", type=int, default=None, help="end after so many of them")
    parser.add_argument("--label", default="run")
    parser.add_argument("--out", type=Path, default=Path("long_streams.jsonl"))
    parser.add_argument("--plot", type=Path, default=None, help="print and plot the lines of --out")
    given = parser.parse_args()
    if given.plot is not None:
        lines = [json.loads(line) for line in given.out.read_text().splitlines()]
        table(lines)
        plot(lines, given.plot)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.experiences, given.upto, Path(folder))
    line = {"label": given.label, "experiences": given.experiences, **found}
    table([line])
    with given.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
