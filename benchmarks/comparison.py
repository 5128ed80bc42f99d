"""What a comparison costs: trained one run after the other, with shared first phases, and with one process a core.

    python benchmarks/comparison.py --out found.jsonl
    python benchmarks/comparison.py --small --methods finetune icarl wa --seeds 0 --out small.jsonl
    python benchmarks/comparison.py --table --out found.jsonl

Each line of the output is one ``cil compare`` in a new process and an empty folder: its wall time and CPU seconds from
start to end, tables and page included, and the digest of all accuracies, which must be the same in all three ways. What
is already there is not run again, so the command may be interrupted.
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
from pathlib import Path
from typing import Any

METHODS = ("finetune", "replay", "icarl", "wa", "lwf", "ewc", "bic", "der", "foster", "podnet")
WAYS = {  # words for the table, and what is asked for
    "apart": ("one after the other, nothing shared", ("jobs=1", "reuse=null", "trainer.threads=1")),
    "shared": ("one after the other, first phases shared", ("jobs=1", "trainer.threads=1")),
    "parallel": ("one process a core, first phases shared", ("jobs=auto", "trainer.threads=1")),
}
LARGE = ("stream=split_cifar100", "model=resnet32", "recipe=survey", "budget.exemplars=2000")
SMALL = (
    "stream=split_mnist5k", "model=smallconv", "budget.exemplars=200", "trainer.epochs=8", "trainer.batch_size=32",
    "optimizer.lr=0.05",
)  # fmt: skip
STREAMS = {  # classes of the first experience and of each later one, large and small
    "base half": ("stream.base=50 stream.increment=10", "stream.base=5 stream.increment=1"),
    "B0": ("stream.increment=10", "stream.increment=2"),
}


def measured(stream: str, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """One comparison in a new process."""
    asked = [
        *(SMALL if given.small else LARGE), *STREAMS[stream][given.small].split(), *WAYS[way][1],
        f"strategy={','.join(given.methods)}", f"seed={','.join(map(str, given.seeds))}", "progress=false",
        *given.override,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cil.cli.main", "compare", *asked, f"out={folder}/out"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).rglob("record.json"))]
    curves = sorted((*_named(one), one["results"]["accuracy_matrix"]) for one in found)
    return {
        "wall": wall,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "runs": len(found),
        "reused": sum(sum(one["results"].get("reused_seconds", [])) for one in found),
        "accuracies": hashlib.sha256(json.dumps(curves).encode()).hexdigest()[:12],
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "asked": asked,
    }


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
        words = WAYS[line["way"]][0]
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
    parser.add_argument("--small", action="store_true", help="5,000 digits and a small network in place of CIFAR-100")
    parser.add_argument("--override", nargs="*", default=[], help="further keys of cil compare")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if not given.table:
        for stream in given.streams:
            for way in given.ways:
                if any((line["stream"], line["way"]) == (stream, way) for line in lines):
                    continue
                lines.append({"stream": stream, "way": way, **measured(stream, way, given)})
                with given.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))
    for stream in {line["stream"] for line in lines}:
        if len({line["accuracies"] for line in lines if line["stream"] == stream}) > 1:
            sys.exit(f"{stream}: accuracies differ from way to way, and must not")


if __name__ == "__main__":
    main()
