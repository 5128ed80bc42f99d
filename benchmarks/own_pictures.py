"""Large own data sets: images a second through the framework beside a plain torch DataLoader, and memory over time.

    python benchmarks/own_pictures.py --folder pictures --out found.jsonl
    python benchmarks/own_pictures.py --folder pictures --pictures 20000 --out found.jsonl

Makes JPEG files of 224 pixels in 100 classes, parts of the two photographs that ship with scikit-learn: 200 different
ones, each written under many names with its number behind the end of the image, where no decoder looks, so that no two
files are equal. Each step runs in a process of its own on one thread and is one line of the output, with CPU seconds,
seconds and the most memory; a step that is there already is left out, so the same command goes on after an end. Rates
are taken in rounds: in every second one the steps come in reverse, and medians of all rounds are printed.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
import json
import multiprocessing
import random
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cil
from cil.data import Augment
from cil.engine.keys import generator
from cil.engine.loader import PhaseLoader
from cil.engine.runtime import keep_freed_blocks
from cil.models import Backbone, register_model
from cil.streams import Stream

CLASSES, SIDE, DIFFERENT, TEST, BATCH, EXPERIENCES = 100, 224, 200, 10, 128, 10
Found = dict[str, Any]


def make_pictures(folder: Path, pictures: int) -> Found:
    """Write ``pictures`` files: train/CLASS/* and ten a class in test/CLASS/*."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    draw, made, written = random.Random(0), list[bytes](), 0
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number in range(DIFFERENT):
        photo, wide = photos[number % 2], draw.randint(SIDE, 400)
        left, top = draw.randint(0, photo.width - wide), draw.randint(0, photo.height - wide)
        file = io.BytesIO()
        photo.crop((left, top, left + wide, top + wide)).resize((SIDE, SIDE)).save(file, "jpeg", quality=90)
        made.append(file.getvalue())
    each = pictures // CLASSES
    for label in range(CLASSES):
        for part, numbers in (("test", range(TEST)), ("train", range(TEST, each))):
            where = folder / part / f"class{label:02d}"
            where.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                content = made[(label * each + number) % DIFFERENT] + f"{label} {number}".encode()
                (where / f"{number:04d}.jpg").write_bytes(content)
                written += len(content)
    return {"files": each * CLASSES, "bytes": written}


def load(folder: Path, **options: Any) -> Stream:
    """The folder as a stream of ten experiences."""
    return cil.class_incremental("folder", path=folder, increment=CLASSES // EXPERIENCES, **options)


def look(folder: Path) -> Found:
    """List the files, decode each once and take its sum: what every first run does before it trains."""
    load(folder).fingerprint  # noqa: B018
    return {"images": _files(folder)}


def decode(folder: Path) -> Found:
    """Make the file of decoded images."""
    load(folder, in_memory="mapped")
    kept = sum(path.stat().st_size for path in (folder / "data" / "cache" / "pixels").iterdir())
    return {"images": _files(folder), "bytes": kept}


def ours(folder: Path, images: int, in_memory: Any = False, augment: Augment | None = None) -> Found:
    """Batches as the training loop gets them, of the first so many images of each class."""
    stream = load(folder, in_memory=in_memory, train_per_class=images // CLASSES)
    train, cpu = stream[0].train, torch.device("cpu")
    for index in range(1, EXPERIENCES):
        train = train + stream[index].train
    loader = PhaseLoader(train, augment or stream.augment, cpu, partial(generator, 0), BATCH)
    return _rate(batch.images for batch in loader.epoch(0))


def raw(folder: Path, images: int, crops: bool = True) -> Found:
    """Batches of a DataLoader over the same files, with the same augmentation: float in [0, 1], channels last."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets
    from torchvision.transforms import v2

    crop = [v2.RandomResizedCrop(SIDE, antialias=True)] if crops else []
    views = [*crop, v2.RandomHorizontalFlip(), v2.PILToTensor()]
    files = datasets.ImageFolder(folder / "train", v2.Compose(views))
    first = np.concatenate([np.flatnonzero(np.array(files.targets) == k)[: images // CLASSES] for k in range(CLASSES)])
    batches = DataLoader(Subset(files, first.tolist()), BATCH, shuffle=True)
    floats = (images.float().div_(255).contiguous(memory_format=torch.channels_last) for images, _ in batches)
    return _rate(floats)


@register_model("tiles")
def tiles(in_channels: int, image_size: Any, **options: Any) -> Backbone:
    """Means of 16 x 16 tiles and one small layer: hardly any arithmetic, so that data are what is timed."""
    stem = nn.Sequential(nn.AvgPool2d(SIDE // 16), nn.Conv2d(in_channels, 8, 3), nn.ReLU())
    return Backbone(stem, [nn.Identity()], feature_dim=8)


def run(folder: Path, images: int, in_memory: Any = False) -> Found:
    """A whole run of ten experiences, one epoch each, of the first so many images of each class.

    Memory is noted every two seconds.
    """
    stream = load(folder, in_memory=in_memory, train_per_class=images // CLASSES)
    began, memory, over = time.monotonic(), list[tuple[float, int, int, int]](), threading.Event()

    def watch() -> None:
        while not over.wait(2):
            memory.append((round(time.monotonic() - began, 1), *_resident()))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    where = folder / "runs" / str(in_memory)
    options: dict[str, Any] = {"evaluation_batch": BATCH, "run_dir": where, "threads": 1}
    cil.train("finetune", stream, "tiles", epochs=1, batch_size=BATCH, **options)
    over.set()
    watching.join()
    count = sum(len(experience.train) for experience in stream)
    return {"images": count + CLASSES * TEST, "memory": memory}


STEPS: dict[str, Callable[..., Found]] = {
    "look": look,
    "raw": raw,
    "ours": ours,
    "decode": decode,
    "raw, flips": partial(raw, crops=False),
    "mapped, flips": partial(ours, in_memory="mapped"),
    "mapped, crops": partial(ours, in_memory="mapped", augment=Augment(flip=True, resized_crop=True)),
    "run": run,
    "run, mapped": partial(run, in_memory="mapped"),
}
RATES = ("raw", "ours", "raw, flips", "mapped, flips", "mapped, crops")
OF_SOME = (*RATES, "run", "run, mapped")  # steps over the first images of each class


def measure(step: str, folder: Path, images: int) -> Found:
    """One step in this process: what it found, and what the whole of it took."""
    os.environ["CIL_DATA"] = str(folder / "data")
    torch.set_num_threads(1)
    keep_freed_blocks()  # as each run does; so both sides have it
    began, cpu = time.monotonic(), time.process_time()
    found = STEPS[step](folder, images) if step in OF_SOME else STEPS[step](folder)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**found, "s": time.monotonic() - began, "cpu_s": time.process_time() - cpu, "most_bytes": most}


def _rate(batches: Iterator[Tensor]) -> Found:
    """How long it takes to go over batches (N, 3, H, W), from the first one on."""
    next(batches)
    began, cpu, images = time.monotonic(), time.process_time(), 0
    for batch in batches:
        images += len(batch)
    return {"images": images, "loop_s": time.monotonic() - began, "loop_cpu_s": time.process_time() - cpu}


def _files(folder: Path) -> int:
    return sum(len(files) for part in ("train", "test") for _, _, files in os.walk(folder / part))


def _resident() -> tuple[int, int, int]:
    """Bytes of memory: the process's own, those of mapped files, and its proportional share of all (PSS)."""
    found = {}
    for file in ("status", "smaps_rollup"):
        for line in Path("/proc/self", file).read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile", "Pss"):
                found[name] = int(value.split()[0]) * 1024
    return found["RssAnon"], found["RssFile"], found["Pss"]


def main() -> None:
    """Take the steps that the output lacks, then print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the pictures and what is decoded go")
    parser.add_argument("--out", type=Path, default=Path("own_pictures.jsonl"))
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--of", type=int, default=10_000, help="pictures that rates and runs are of")
    parser.add_argument("--pairs", type=int, default=2, help="how often rates are measured, one after the other")
    parser.add_argument("--steps", nargs="*", default=list(STEPS), choices=STEPS)
    given = parser.parse_args()
    if not (given.folder / "made").is_file():
        (given.folder / "made").write_text(json.dumps(make_pictures(given.folder, given.pictures)))
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.is_file() else []
    todo = [(name, 0) for name in given.steps if name not in RATES]
    rates = [name for name in given.steps if name in RATES]
    todo += [(name, pair) for pair in range(given.pairs) for name in (rates[::-1] if pair % 2 else rates)]
    for step, pair in sorted(todo, key=lambda one: (one[0].startswith("run"), one[0] in RATES)):
        if any((line["step"], line["pair"], line["pictures"]) == (step, pair, given.pictures) for line in done):
            continue
        with multiprocessing.get_context("fork").Pool(1) as pool:  # torch is imported once
            found = pool.apply(measure, (step, given.folder, given.of))
        done.append({"step": step, "pair": pair, "pictures": given.pictures, **found})
        with given.out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    table(done)


def table(lines: Sequence[Mapping[str, Any]]) -> None:
    """One row for each step, medians where it was taken several times, in Markdown; then memory over the runs."""
    print("| step | times | pictures | CPU s | pictures a CPU second | most memory, MB |\n|" + " --- |" * 6)
    for step in dict.fromkeys(line["step"] for line in lines):
        own = [line for line in lines if line["step"] == step]
        seconds = statistics.median(line.get("loop_cpu_s", line["cpu_s"]) for line in own)
        images, most = own[0]["images"], max(line["most_bytes"] for line in own) / 1e6
        print(f"| {step} | {len(own)} | {images:,} | {seconds:.1f} | {images / seconds:.0f} | {most:.0f} |")
    for line in lines:
        memory = line.get("memory", [])
        tenths = [memory[(len(memory) - 1) * tenth // 10] for tenth in range(11)] if memory else []
        for place, name in enumerate(("own memory", "mapped files", "PSS"), start=1):
            if tenths and place < len(tenths[0]):  # early lines have fewer
                values = ", ".join(f"{one[place] / 1e6:.0f}" for one in tenths)
                print(f"{line['step']}, {name} in MB after each tenth: {values}")


if __name__ == "__main__":
    main()
