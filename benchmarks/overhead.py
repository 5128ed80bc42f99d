"""What the framework costs beside the arithmetic: pairs of runs, by hand and in the framework, in one process.

    python benchmarks/overhead.py --net resnet32 --precision fp32 bf16 --pairs 5
    python benchmarks/overhead.py --net resnet32 --precision bf16 --epochs 8 --apart
    python benchmarks/overhead.py --net smallconv --parts

Each pair trains the same amount with ``benchmarks/raw.py`` and with ``cil``, in alternating order, on one thread, and
compares CPU seconds of the process. Reported: the median ratio, and all ratios. Start from an idle machine. With
``--apart`` each side has a process of its own, after a warm-up of one epoch, so that neither finds the other's
allocator and kernel caches. What metering takes of a run is below what pairs can tell: ``metering_share.py``.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import raw
import torch
from torch import nn

from cil.api import plan
from cil.data import ArrayStore, Augment, Dataset, Samples
from cil.engine.recipe import Recipe
from cil.memory import Budget, herd
from cil.models import build_backbone
from cil.streams import Stream, class_incremental
from cil.tracking import Record

SIZES = {"resnet32": (100, 4, 128), "smallconv": (200, 16, 32)}  # training images of a class, epochs, images a batch
CLASSES, EXPERIENCES, EXEMPLARS, TEST = 5, 2, 100, 50


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with labels: the time does not depend on what is seen."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES * EXPERIENCES).repeat_interleave(count)
    return torch.randint(0, 256, (len(labels), 3, 32, 32), dtype=torch.uint8, generator=generator), labels


def make_work(net: str, precision: str, epochs: int | None = None) -> raw.Work:
    """The work of one run."""
    count, usual, batch = SIZES[net]
    epochs = epochs or usual
    return raw.Work(
        images(count, 0), images(TEST, 1), CLASSES, EXPERIENCES, epochs, batch, EXEMPLARS, bf16=precision == "bf16"
    )


def make_backbone(net: str) -> tuple[nn.Module, int]:
    """The framework's network, as both sides use it."""
    backbone = build_backbone(net, 3, 32)
    return backbone, backbone.feature_dim


def make_stream(work: raw.Work) -> Stream:
    """The same data as a stream."""
    splits = [Samples(ArrayStore(pixels), labels) for pixels, labels in (work.train, work.test)]
    names = [str(label) for label in range(CLASSES * EXPERIENCES)]
    data = Dataset("noise", *splits, names, augment=Augment(crop_padding=work.padding, flip=True))
    return class_incremental(data, increment=CLASSES, order="natural", mean=[0.5] * 3, std=[0.25] * 3)


def framework(work: raw.Work, stream: Stream, method: str, net: str, folder: Path) -> Record:
    """The same in the framework, with its record, ledger, snapshots and log."""

    sgd = partial(torch.optim.SGD, lr=work.lr, momentum=0.9, weight_decay=5e-4)
    recipe = Recipe(epochs=work.epochs, batch_size=work.batch_size, optimizer=sgd)
    precision = "bf16" if work.bf16 else "fp32"
    budget = Budget(exemplars=EXEMPLARS)
    return plan(method, stream, net, budget, recipe=recipe, run_dir=folder, precision=precision).execute()


def seconds(side: str, net: str, method: str, precision: str, epochs: int | None) -> float:
    """CPU seconds that one side takes, in this process."""
    work = make_work(net, precision, epochs)
    stream = make_stream(work)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        if side == "raw":
            raw.train(work, method, partial(make_backbone, net))
        else:
            framework(work, stream, method, net, Path(folder))
        return time.process_time() - began


def seconds_apart(side: str, net: str, method: str, precision: str, epochs: int | None) -> float:
    """The same in a fresh process, which warms up first."""
    given = ["--side", side, "--net", net, "--method", method, "--precision", precision]
    given += ["--epochs", str(epochs)] if epochs else []
    done = subprocess.run([sys.executable, __file__, *given], check=True, capture_output=True, text=True)
    return float(done.stdout)


def pairs(
    net: str, method: str, precision: str, count: int, epochs: int | None, apart: bool
) -> tuple[list[float], float]:
    """Ratios of CPU seconds, framework to plain PyTorch, and the milliseconds of a step of that."""
    measure = seconds_apart if apart else seconds
    ratios, spent = [], {}
    for number in range(int(apart), count + 1):  # in one process the first pair warms up
        for side in ("raw", "cil") if number % 2 else ("cil", "raw"):
            spent[side] = measure(side, net, method, precision, epochs)
        if number:
            ratios.append(spent["cil"] / spent["raw"])
    work = make_work(net, precision, epochs)
    steps = EXPERIENCES * work.epochs * -(-len(work.train[0]) // EXPERIENCES // work.batch_size)
    return ratios, 1000 * spent["raw"] / steps


def parts(net: str) -> None:
    """Seconds of the parts of one iCaRL run, and of herding, boundary and import by themselves."""
    work = make_work(net, "fp32")
    stream = make_stream(work)
    with tempfile.TemporaryDirectory() as folder:
        record = framework(work, stream, "icarl", net, Path(folder))
        seconds = record.results["seconds"]
        for name in ("train", "consolidate", "evaluate"):
            print(f"  {name:28s} {sum(seconds[name]):8.3f} s")
        began = time.perf_counter()
        framework(work, stream, "icarl", net, Path(folder))
        print(f"  {'finished run found again':28s} {time.perf_counter() - began:8.3f} s")
    features = torch.nn.functional.normalize(torch.randn(5000, 64, generator=torch.Generator().manual_seed(0)))
    began = time.perf_counter()
    herd(features, 50)
    print(f"  {'herding 50 of 5,000 (64-d)':28s} {time.perf_counter() - began:8.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        record = Record.open(folder, {}, {})
        began = time.perf_counter()
        for number in range(1000):
            record.append({"kind": "step", "step": number, "values": {"loss": 1.0, "lr": 0.1}})
        print(f"  {'a line of the log':28s} {1000 * (time.perf_counter() - began) / 1000:8.3f} ms")
        record.close()
    for what in ("import torch", "import cil", "from cil.engine.driver import Run"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", what], check=True)
        print(f"  {what:28s} {time.perf_counter() - began:8.3f} s")


def main() -> None:
    """Print one line for each net, precision and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=["smallconv"], choices=sorted(SIZES))
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--method", nargs="+", default=["finetune", "replay", "icarl"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=None, help="of an experience; short by default: 4 or 16")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--apart", action="store_true", help="each side in a process of its own")
    parser.add_argument("--side", choices=["raw", "cil"], help="print the CPU seconds of one side only, warmed up")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.side:
        what = given.side, given.net[0], given.method[0], given.precision[0]
        seconds(*what, 1)
        print(seconds(*what, given.epochs))
        return
    for net in given.net:
        for precision in given.precision:
            for method in given.method:
                ratios, step = pairs(net, method, precision, given.pairs, given.epochs, given.apart)
                each = " ".join(f"{ratio:.3f}" for ratio in ratios)
                print(f"{net} {precision} {method:9s} median {statistics.median(ratios):.3f}  [{each}]  "
                      f"raw: {step:.1f} ms a step", flush=True)  # fmt: skip
        if given.parts:
            print(f"parts of an icarl run, {net}, fp32")
            parts(net)


if __name__ == "__main__":
    main()
