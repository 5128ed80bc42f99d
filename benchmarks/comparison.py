"""What a comparison costs: trained one run after the other, with shared first phases, and with one process a core.

    python benchmarks/comparison.py --out found.jsonl
    python benchmarks/comparison.py --size reduced --toolbox DIR --out reduced.jsonl
    python benchmarks/comparison.py --size digits --methods finetune icarl wa --seeds 0 --out small.jsonl
    python benchmarks/comparison.py --table --out found.jsonl

Each line of the output is one ``cil compare`` in a new process and an empty folder: its wall time and CPU seconds from
start to end, tables and page included, and the digest of all accuracies, which must be the same in all three ways. What
is already there is not run again, so the command may be interrupted. With ``--toolbox``, a checkout of PyCIL, its runs
of the same methods and seeds are timed too, one after the other in one process, as ``benchmarks/pycil.py`` drives it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pycil import Setting

METHODS = ("finetune", "replay", "icarl", "wa", "lwf", "ewc", "bic", "der", "foster", "memo")
WAYS = {  # words for the table, and what is asked for
    "apart": ("one after the other, nothing shared", ("jobs=1", "reuse=null", "trainer.threads=1")),
    "shared": ("one after the other, first phases shared", ("jobs=1", "trainer.threads=1")),
    "parallel": ("one process a core, first phases shared", ("jobs=auto", "trainer.threads=1")),
}
TOOLBOX = "PyCIL, one after the other"
FULL = ("stream=split_cifar100", "model=resnet32", "recipe=survey", "budget.exemplars=2000")
SETTINGS = {  # of the toolbox, at the reduced size
    stream: Setting(
        base=base, each=2, per_class=50, test_per_class=10, exemplars=200, epochs=3, batch=32, milestones=(), depth=14
    )
    for stream, base in {"base half": 10, "B0": 2}.items()
}
REDUCED = (  # a fifth of the classes, a tenth of the images of each and of the exemplars
    "stream=split_cifar100", "stream.classes=20", "stream.train_per_class=50", "stream.test_per_class=10",
    "model=resnet14", "budget.exemplars=200", "trainer.epochs=3", "trainer.batch_size=32",
)  # fmt: skip
DIGITS = (
    "stream=split_mnist5k", "model=smallconv", "budget.exemplars=200", "trainer.epochs=8", "trainer.batch_size=32",
    "optimizer.lr=0.05",
)  # fmt: skip
SIZES = {"full": FULL, "reduced": REDUCED, "digits": DIGITS}
STREAMS = {  # classes of the first experience and of each later one, full and a tenth or fifth of it
    "base half": {"full": "stream.base=50 stream.increment=10", "reduced": "stream.base=10 stream.increment=2",
                  "digits": "stream.base=5 stream.increment=1"},
    "B0": {"full": "stream.increment=10", "reduced": "stream.increment=2", "digits": "stream.increment=2"},
}  # fmt: skip


def measured(stream: str, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """One comparison in a new process."""
    asked = [
        *SIZES[given.size], *STREAMS[stream][given.size].split(), *WAYS[way][1],
        f"strategy={','.join(given.methods)}", f"seed={','.join(map(str, given.seeds))}", "progress=false",
        *given.override,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cil.cli.main", "compare", *asked, f"out={folder}/out"]
        cost, _ = _timed(command)
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).rglob("record.json"))]
    curves = sorted((*_named(one), one["results"]["accuracy_matrix"]) for one in found)
    return {
        **cost,
        "runs": len(found),
        "reused": sum(sum(one["results"].get("reused_seconds", [])) for one in found),
        "accuracies": hashlib.sha256(json.dumps(curves).encode()).hexdigest()[:12],
        "asked": asked,
    }


def measured_toolbox(stream: str, given: argparse.Namespace) -> dict[str, Any]:
    """The toolbox's runs in one new process."""
    setting = asdict(SETTINGS[stream])
    milestones = setting.pop("milestones")
    words = [word for key, value in setting.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    seeds = [str(seed) for seed in given.seeds]
    cost, said = _timed([
        sys.executable, str(Path(__file__).with_name("pycil.py")), str(given.toolbox), "--methods", *given.methods,
        "--seeds", *seeds, *words, "--milestones", *map(str, milestones),
    ])  # fmt: skip
    runs = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return {**cost, "runs": len(runs), "accuracies": "", "curves": runs}


def _timed(command: list[str]) -> tuple[dict[str, Any], str]:
    """Wall time and CPU seconds of a command and its children, the machine's cores and load; and what it printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {
        "wall": wall,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }
    return cost, said


def _named(record: dict[str, Any]) -> tuple[str, int]:
    return record["identity"]["strategy"], record["identity"]["seed"]


def table(lines: list[dict[str, Any]]) -> str:
    """One row for each stream and way, with factors against the first way."""
    names = ("stream", "way", "runs", "wall, s", "CPU, s", "times less wall", "times less CPU", "accuracies")
    rows = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    first = {line["stream"]: line for line in lines if line["way"] == "apart"}
    for line in lines:
        base = first.get(line["stream"])
        less = ["" if base is None else f"{base[key] / line[key]:.2f}" for key in ("wall", "cpu")]
        words = TOOLBOX if line["way"] == "toolbox" else WAYS[line["way"]][0]
        rows.append(
            f"| {line['stream']} | {words} | {line['runs']} | {line['wall']:.1f} | {line['cpu']:.1f} | {less[0]} | "
            f"{less[1]} | {line['accuracies']} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--size", default="full", choices=list(SIZES), help="digits: 5,000 of them, a small network")
    parser.add_argument("--toolbox", type=Path, help="a checkout of PyCIL, with --size reduced")
    parser.add_argument("--override", nargs="*", default=[], help="further keys of cil compare")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.toolbox and given.size != "reduced":
        parser.error("--toolbox is measured with --size reduced")
    ways = [*given.ways, *(["toolbox"] if given.toolbox else [])]
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if not given.table:
        for stream in given.streams:
            for way in ways:
                if any((line["stream"], line["way"]) == (stream, way) for line in lines):
                    continue
                cost = measured_toolbox(stream, given) if way == "toolbox" else measured(stream, way, given)
                lines.append({"stream": stream, "way": way, **cost})
                with given.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))
    for stream in {line["stream"] for line in lines}:
        if len({line["accuracies"] for line in lines if line["stream"] == stream} - {""}) > 1:
            sys.exit(f"{stream}: accuracies differ from way to way, and must not")


if __name__ == "__main__":
    main()
