"""What each strategy costs and reaches in one small comparison: the figures on the cards of docs/methods.

    python benchmarks/method_cards.py                     # measures the strategies that have no line yet
    python benchmarks/method_cards.py --methods my_idea   # one of them
    python benchmarks/method_cards.py --missing           # names them; ends with 1 if there are any
    python docs/make_methods.py                           # writes the cards into the pages

Each line of ``method_cards.jsonl`` is one run, of one strategy and seed. A line counts as long as its setting here is
the one it was measured in; after a change of a setting its strategies are measured again. All figures are read off the
record of the run, except the processor time, which is that of the whole run in one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

import cil
import cil.testing  # registers toy_clip
from cil.errors import CilError
from cil.models.weights import save_weights
from cil.plugins import BUILT_IN
from cil.strategies import built_in, find

ROOT = Path(__file__).resolve().parents[1]
LINES = Path(__file__).resolve().with_suffix(".jsonl")
WEIGHTS = "runs/letters.safetensors"  # of the small transformer; made where it is not there
VIT = (
    "model=timm", "model.name=timm:vit_tiny_patch16_224", "+model.options.img_size=16", "+model.options.patch_size=4",
    "+model.options.embed_dim=48", "+model.options.depth=5", "+model.options.num_heads=4",
)  # fmt: skip
DIGITS = (
    "stream=split_digits", "budget.exemplars=100", "trainer.epochs=5", "trainer.batch_size=32", "optimizer.lr=0.05",
)  # fmt: skip
LETTERS = (  # 52 letters in 21 fonts: no digit among them
    "strategy=joint", "stream=split_glyphs", f"stream.classes={[*range(32, 58), *range(64, 90)]}".replace(" ", ""),
    "stream.increment=52", "stream.mean=[0.5]", "stream.std=[0.5]", *VIT,
    "trainer.epochs=20", "trainer.batch_size=32", "optimizer=adamw", "optimizer.lr=0.002",
)  # fmt: skip
TASKS = (
    "stream=embedded_tasks", "stream.ids=[digits,digits-rot,shapes,digits-again]", "stream.reevaluate=all_seen",
    "strategy.search.trials=2", "strategy.search.steps=50", "budget.exemplars=100",
)  # fmt: skip
SETTINGS: Mapping[str, tuple[str, ...]] = {  # of each kind of method, as words of `cil run`
    "digits": DIGITS,
    "transformer": (*DIGITS, *VIT, f"model.weights={WEIGHTS}"),
    "clip": (*DIGITS, "model.name=toy_clip"),
    "tasks": TASKS,
}
REFERENCE = {"digits": "finetune", "transformer": "finetune", "clip": "finetune", "tasks": "previous"}
PRETRAINED = (
    "linear_probe",
    "ranpac",
    "simplecil",
    "slca",
)  # any backbone will do, but they are meant for a trained one
ADAM = ("optimizer=adam", "optimizer.lr=0.001")  # of methods that divide logits by 0.1: by SGD they stay at chance
OWN: Mapping[str, tuple[str, ...]] = {  # words of single methods
    "aanets": ("model=resnet14_cosine", "model.options.width=8"),
    "acil": ("strategy.size=512",),
    "coil": ("model.head=cosine",),
    "ds_al": ("strategy.size=512",),
    "dytox": ("model.options.width=48", "model.options.depth=3", "model.options.heads=4", "optimizer.lr=0.005"),
    "ecotta_cil": ("model=resnet14", "model.options.width=8"),
    "lucir": ("model.head=cosine",),
    "mas": ("optimizer.lr=0.01",),
    "podnet": ("model.head=cosine",),
    "moe_adapters": ("model.name=toy_clip_transformer",),
    "pass": ADAM,
    "ranpac": ("strategy.size=1000",),
    "rmm": ("budget.scope=carried+incoming",),
    "ssre": ADAM,
}
NAMES = sorted([*built_in(), *BUILT_IN["cil.strategies"]])  # of those that ship here
STORED = ("exemplars", "labels", "features", "replay_logits")  # kinds of entries that are data


def setting_of(name: str) -> str:
    """The setting that a strategy is measured in."""
    method = find(name)
    model = str(method.toy_model.get("name", ""))
    if method.takes_task:
        return "tasks"
    if model.startswith("timm:") or name in PRETRAINED:
        return "transformer"
    return "clip" if model.startswith("toy_clip") else "digits"


def words_of(name: str, setting: str | None = None) -> list[str]:
    """What `cil run` is asked, but for seed and folder."""
    return [f"strategy={name}", *SETTINGS[setting or setting_of(name)], *OWN.get(name, ())]


def wanted() -> list[tuple[str, str]]:
    """Setting and strategy of each card, and of what each setting's times are compared with; those first."""
    cards = [(setting_of(name), name) for name in NAMES]
    return list(dict.fromkeys([*REFERENCE.items(), *sorted(cards)]))


def read() -> dict[tuple[str, str, int], dict[str, Any]]:
    """The lines that still hold, by setting, strategy and seed."""
    lines = map(json.loads, LINES.read_text().splitlines()) if LINES.exists() else ()
    found = {(line["setting"], line["strategy"], line["seed"]): line for line in lines}
    asked = {(setting, name): words_of(name, setting) for setting, name in wanted()}
    return {key: line for key, line in found.items() if line["words"] == asked.get(key[:2])}


def missing(seeds: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """Setting, strategy and seed of each run without a line."""
    done = read()
    return ((*case, seed) for seed in seeds for case in wanted() if (*case, seed) not in done)


def measured(setting: str, name: str, seed: int) -> dict[str, Any]:
    """Run it, and take the figures of its card."""
    words = words_of(name, setting)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        record = cil.run(*words, f"seed={seed}", f"run_dir={folder}/run", "device=cpu", "progress=false")
        seconds = time.process_time() - began
    assert record.status == "finished", record.error
    return {
        "setting": setting, "strategy": name, "seed": seed, "words": words, "date": date.today().isoformat(),
        "version": cil.__version__, **figures(record.results), "cpu_seconds": round(seconds, 2),
    }  # fmt: skip


def figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes, operations and accuracy of a run."""
    ledger = results["ledger"][-1]
    exact = ledger["totals"]["exact"]
    backbone = ledger["totals"]["survey"].get("parameters", 0)
    stored = sum(exact.get(kind, 0) for kind in STORED)
    spent = results["flops"]
    by_task = "events" in results  # their curve is of each task right after its training
    return {
        "bytes": {
            "backbone": backbone, "learned": exact["total"] - backbone - stored, "stored": stored,
            "total": exact["total"], "public": ledger["public"],
        },
        "flops": spent["total"] - sum(_last(spent.get("evaluation", 0))),
        "peak_training_bytes": results["peak_training_bytes"],
        "last": round(results["average_accuracy" if by_task else "last_accuracy"], 2),
        "average": round(results["last_accuracy" if by_task else "average_incremental_accuracy"], 2),
    }  # fmt: skip


def _last(value: Any) -> list[float]:
    return [value[-1] if isinstance(value, list) else value]


def make_weights() -> None:
    """Train the small transformer on letters, and write its weights."""
    with tempfile.TemporaryDirectory() as folder:
        record = cil.run(*LETTERS, "seed=0", f"run_dir={folder}/run", "device=cpu", "progress=false")
        print(f"transformer on letters: {record.results['last_accuracy']:.1f} % of test fonts", flush=True)
        Path(WEIGHTS).parent.mkdir(exist_ok=True)
        save_weights(cil.load(record.directory).learner.net.backbone.model, WEIGHTS)


def main() -> int:
    """Measure what is missing, one line a run; 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="by default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--missing", action="store_true", help="only name the runs without a line")
    given = parser.parse_args()
    left = [case for case in missing(given.seeds) if case[1] in given.methods]
    if given.missing:
        for setting, name, seed in left:
            print(f"{name}, seed {seed} ({setting})")
        return bool(left)
    torch.set_num_threads(1)
    os.chdir(ROOT)
    if not Path(WEIGHTS).exists() and any(setting == "transformer" for setting, _, _ in left):
        make_weights()
    failed = False
    for case in left:
        try:
            line = measured(*case)
        except CilError as error:  # the others are measured all the same
            failed = True
            print(*case, f"failed: {error}", flush=True)
            continue
        with LINES.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(*case, line["last"], line["average"], f"{line['cpu_seconds']} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
