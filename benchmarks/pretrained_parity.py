"""Methods on pretrained backbones: the same small transformer, images and draws in public toolboxes and here.

    python benchmarks/pretrained_parity.py DIR --weights FILE --out found.jsonl
    python benchmarks/pretrained_parity.py --table --out found.jsonl

DIR has checkouts of LAMDA-PILOT, InfLoRA, FeCAM and Analytic-continual-learning, none of which is part of this project
or a dependency, and a folder ``packages`` with the timm that they want (``pip install --no-deps --target DIR/packages
timm==0.6.12 easydict``). FILE has weights of the transformer by timm's names. Each line of the output is one run: the
accuracy after each experience, and the class answered for each test image after the last one. What is already there is
not run again, so the command may be interrupted.

A seed cannot be shared with another code, but what it draws can: initial values of learned parts, the order of batches,
random layers and Gaussian samples are written down in DIR/draws by the run here, and the toolbox is given the same.
Dropout is off on both sides. So curves must be equal up to rounding, which a difference of rules does not survive.

Sides: ``cil``; ``toolbox``, with what ``MENDS`` in pretrained_toolboxes.py names; ``unchanged``, the toolbox without.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from reference import table
from safetensors.torch import save_file
from torch import Tensor, nn

import cil
from cil.contract import Phase
from cil.data import Batch
from cil.engine.recipe import Recipe, constant, cosine, multistep, quarter_cosine
from cil.strategies import find
from cil.streams import Experience, Stream

CLASSES, EACH, PER_CLASS, TEST = 10, 2, 40, 50
EPOCHS, BATCH, RANK, DECAY = 4, 20, 16, 5e-4
SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
MODEL = "timm:vit_tiny_patch16_224"
SIDES = ("cil", "toolbox", "unchanged")
SGD = {"momentum": 0.9, "weight_decay": DECAY}


@dataclass(frozen=True)
class Method:
    """One method on both sides.

    Args:
        strategy: Name here.
        options: Of the strategy.
        lr, adam, schedule: Of training, where there is any.
        theirs: Keys of the toolbox's configuration, beside those that follow from the others.
        code: Which toolbox.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.01
    adam: bool = False
    schedule: Any = cosine
    theirs: Mapping[str, Any] = field(default_factory=dict)
    code: str = "pilot"


PROMPTS = {
    "get_original_backbone": True, "drop": 0.0, "drop_path": 0.0, "prompt_pool": True, "prompt_key": True,
    "prompt_key_init": "uniform", "embedding_key": "cls", "batchwise_prompt": True, "pull_constraint": True,
    "pull_constraint_coeff": 0.1, "shared_prompt_key": False, "reinit_optimizer": True, "length": 5,
    "freeze": ["blocks", "patch_embed", "cls_token", "norm", "pos_embed"],
}  # fmt: skip
L2P = {**PROMPTS, "size": 10, "top_k": 5, "head_type": "prompt", "use_prompt_mask": False, "shared_prompt_pool": False}
DUALPROMPT = {
    **PROMPTS, "size": CLASSES // EACH, "top_k": 1, "head_type": "token", "use_prompt_mask": True,
    "shared_prompt_pool": True, "use_g_prompt": True, "g_prompt_length": 5, "g_prompt_layer_idx": [0, 1],
    "use_prefix_tune_for_g_prompt": True, "use_e_prompt": True, "e_prompt_layer_idx": [2, 3, 4],
    "use_prefix_tune_for_e_prompt": True, "same_key_value": False,
}  # fmt: skip
EASE = {
    "init_epochs": EPOCHS, "later_epochs": EPOCHS, "use_diagonal": False, "recalc_sim": True, "alpha": 0.1, "beta": 0,
    "use_init_ptm": False, "use_old_data": False, "use_reweight": True, "moni_adam": False, "adapter_num": -1,
}  # fmt: skip
PLAIN, ADAPTER = {"backbone_type": "pretrained_vit_b16_224"}, {"backbone_type": "pretrained_vit_b16_224_adapter"}
METHODS = {
    "simplecil": Method("simplecil", theirs={"model_name": "simplecil", **PLAIN}),
    "fecam": Method("fecam", {"unit": True, "other_shrinkage": 0.0}, code="fecam"),
    "ranpac": Method(
        "ranpac", {"size": 1000, "ridge": 100.0},
        theirs={"model_name": "ranpac", **PLAIN, "use_RP": True, "M": 1000, "ridge": 100.0},
    ),
    "acil": Method("acil", {"size": 1000}, code="acil", theirs={"buffer_size": 1000, "gamma": 0.1}),
    "ranpac_adapter": Method(
        "ranpac", {"size": 1000, "tuner": "adapter", "rank": RANK, "ridge": 100.0}, lr=0.005, adam=True,
        theirs={"model_name": "ranpac", **ADAPTER, "use_RP": True, "M": 1000, "ridge": 100.0},
    ),
    "aper": Method("aper", {"rank": RANK}, lr=0.005, adam=True, theirs={"model_name": "aper_adapter", **ADAPTER}),
    "ease": Method(
        "ease", {"rank": RANK}, lr=0.005, adam=True,
        theirs={"model_name": "ease", "backbone_type": "vit_base_patch16_224_ease", **EASE},
    ),
    "slca": Method(
        "slca", {"backbone_lr": 1e-3}, schedule=partial(multistep, milestones=(3,)),
        theirs={"model_name": "slca", **PLAIN, "milestones": [3], "bcb_lrscale": 0.1, "ca_epochs": 5,
                "ca_with_logit_norm": 0.1},
    ),
    "l2p": Method(
        "l2p", {"train_selection": "batch"}, lr=0.005, adam=True, schedule=constant,
        theirs={"model_name": "l2p", "backbone_type": "vit_base_patch16_224_l2p", **L2P},
    ),
    "dualprompt": Method(
        "dualprompt", lr=0.005, adam=True, schedule=constant,
        theirs={"model_name": "dualprompt", "backbone_type": "vit_base_patch16_224_dualprompt", **DUALPROMPT},
    ),
    "coda_prompt": Method(
        "coda_prompt", lr=0.005, adam=True, schedule=quarter_cosine,
        theirs={"model_name": "coda_prompt", "backbone_type": "vit_base_patch16_224_coda_prompt",
                "prompt_param": [10 * CLASSES // EACH, 8, 0.0]},
    ),
    "inflora": Method(
        "inflora", {"step": 0.05 * EACH / CLASSES, "energy": "published"}, lr=0.001, adam=True,
        schedule=quarter_cosine, theirs={"rank": 10, "lamb": 0.95, "lame": 1.0, "optim": "adam"}, code="inflora",
    ),
}  # fmt: skip


@cache
def make_stream() -> Stream:
    """Ten classes of CIFAR-100 in the survey's order, a part of the training images, which are not augmented."""
    return cil.class_incremental(
        "cifar100", increment=EACH, order_seed=1993, classes=CLASSES, train_per_class=PER_CLASS, test_per_class=TEST,
        augment={}, mean=MEAN, std=STD,
    )  # fmt: skip


def images_by_slot() -> dict[str, Tensor]:
    """Training and test images as float (N, C, H, W) in [0, 1], class after class, with their slots."""
    stream, found = make_stream(), {}
    for name in ("train", "test"):
        parts = [stream.test(index) if name == "test" else stream[index].train for index in range(len(stream))]
        slots = torch.cat([part.slots for part in parts])
        order = slots.argsort(stable=True)
        found[name] = torch.cat([part.pixels for part in parts])[order].float() / 255
        found[f"{name}_slots"] = slots[order]
    return found


def watched(kind: type[Any], draws: dict[str, Tensor]) -> type[Any]:
    """The same strategy, which writes down what was drawn: learned values at the start of each experience, rows of each
    batch (numbered class after class), Gaussian samples. Without dropout."""

    class Watched(kind):  # type: ignore[misc]
        def phases(self, experience: Experience) -> Iterator[Phase]:
            place = experience.train.slots.argsort(stable=True).argsort()
            for phase in super().phases(experience):
                for module in (layer for own in self.modules() for layer in own.modules()):
                    if isinstance(module, nn.Dropout):
                        module.p = 0.0
                note = f"{experience.index}/" if phase.main else f"{experience.index}/align_"
                if phase.main:
                    draws.update({note + name: value for name, value in learned(self)})
                rows: dict[int, Tensor] = {}
                samples: dict[int, Tensor] = {}
                yield replace(phase, loss=partial(self.noted, phase, rows, samples))
                if samples:
                    draws[note + "features"] = torch.stack(list(samples.values()), dim=1)
                order = torch.cat([rows[step] for step in sorted(rows)]).view(-1, len(phase.samples))
                draws[note + "order"] = place[order] if phase.main else order

        def noted(self, phase: Phase, rows: dict[int, Tensor], samples: dict[int, Tensor], batch: Batch) -> Any:
            assert batch.rows is not None
            rows[self.progress.step] = batch.rows.clone()
            found = phase.loss(batch)
            if not phase.main:
                samples[self.progress.epoch] = self.drawn.clone()  # of each epoch, made with its first batch
            return found

    return Watched


def learned(learner: Any) -> Iterator[tuple[str, Tensor]]:
    """Copies of what is trained, by name, but for the backbone."""
    for name, value in learner.held().items():
        for key, parameter in value.named_parameters(name) if isinstance(value, nn.Module) else ():
            if parameter.requires_grad and "backbone" not in key:
                yield key, parameter.detach().clone()


def ours(method: Method, seed: int, weights: Path, draws: dict[str, Tensor]) -> dict[str, Any]:
    """Curve and answers in the framework; ``draws`` is filled."""
    recipe = Recipe(
        epochs=EPOCHS, batch_size=BATCH, scheduler=method.schedule,
        optimizer=partial(torch.optim.Adam, lr=method.lr) if method.adam
        else partial(torch.optim.SGD, lr=method.lr, **SGD),
    )  # fmt: skip
    model = {"name": MODEL, "weights": str(weights), "mean": MEAN, "std": STD, "options": SHAPE}
    strategy = partial(watched(find(method.strategy), draws), **method.options)
    with tempfile.TemporaryDirectory() as folder:
        record = cil.train(strategy, make_stream(), model, recipe=recipe, seed=seed, run_dir=folder, progress=False)
        trained = cil.load(folder, strategy=strategy)
        images = images_by_slot()["test"]
        with torch.no_grad():
            answers = torch.cat([trained(part).argmax(1) for part in images.split(100)])
    layer = getattr(trained.learner, "layer", None)
    if layer is not None:
        draws["layer"] = layer.clone()
    return {"curve": list(record.results["accuracy_curve"]), "answers": "".join(map(str, answers.tolist()))}


def configuration(method: Method) -> dict[str, Any]:
    """What a toolbox is told of the lengths, under all the names that they have."""
    schedules = {constant: "constant", cosine: "cosine", quarter_cosine: "cosine"}
    rates = dict.fromkeys(("init_lr", "lrate", "later_lr"), method.lr)
    decays = dict.fromkeys(("weight_decay", "init_weight_decay"), 0.0 if method.adam else DECAY)
    epochs = dict.fromkeys(("tuned_epoch", "epochs", "init_epoch"), EPOCHS)
    return {
        "batch_size": BATCH, "min_lr": 0, "ffn_num": RANK, "lrate_decay": 0.1,
        "optimizer": "adam" if method.adam else "sgd", "scheduler": schedules.get(method.schedule), **rates, **decays,
        **epochs, **method.theirs,
    }  # fmt: skip


def same_answers(lines: list[dict[str, Any]]) -> None:
    """Test images that both sides answer alike, and the largest difference between two points of the curves."""
    found = {(line["method"], line["side"], line["seed"]): line for line in lines}
    for method, side, seed in sorted(found):
        here = found.get((method, "cil", seed))
        if side == "cil" or here is None:
            continue
        there = found[method, side, seed]
        same = sum(one == other for one, other in zip(here["answers"], there["answers"], strict=True))
        gap = max(abs(one - other) for one, other in zip(here["curve"], there["curve"], strict=True))
        alike = f"{same} of {len(here['answers'])} answers alike"
        print(f"{method:15s} {side:10s} seed {seed}: {alike}, curves within {gap:.2f}")


def main() -> None:
    """Run what is missing, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", nargs="?", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", default=["cil", "toolbox"], choices=SIDES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        lines = _lines(given.out)
        same_answers(lines)
        for side in SIDES[1:]:
            print(f"-- {side}")
            pair = [line for line in lines if line["side"] in ("cil", side)]
            table([line | {"side": line["side"].replace(side, "toolbox")} for line in pair])
        return
    torch.set_num_threads(1)
    draws = given.where / "draws"
    draws.mkdir(exist_ok=True)
    wanted = [(side, seed, name) for side in given.sides for seed in given.seeds for name in given.methods]
    done = {(line["side"], line["seed"], line["method"]) for line in _lines(given.out)}
    missing = [run for run in wanted if run not in done]
    for side, seed, name in missing:
        if side == "cil":
            run_here(name, seed, given, draws)
    for side, name in dict.fromkeys((side, name) for side, _, name in missing if side != "cil"):
        run_there(METHODS[name].code, [run for run in missing if (run[0], run[2]) == (side, name)], given, draws)


def run_here(name: str, seed: int, given: argparse.Namespace, draws: Path) -> None:
    """One run in the framework; what it drew is kept before its line."""
    drawn: dict[str, Tensor] = {}
    found = ours(METHODS[name], seed, given.weights, drawn)
    save_file(images_by_slot(), draws / "images.safetensors")
    save_file({key: value.contiguous() for key, value in drawn.items()}, draws / f"{name}-{seed}.safetensors")
    with given.out.open("a") as file:
        file.write(json.dumps({"side": "cil", "method": name, "seed": seed} | found) + "\n")


def run_there(code: str, runs: list[tuple[str, int, str]], given: argparse.Namespace, draws: Path) -> None:
    """Runs of one method and side in a process of its own: checkouts share names of modules and want another timm, and
    what is mended stays so in its process."""
    jobs = {
        "code": code, "where": str(given.where.resolve()), "weights": str(given.weights.resolve()),
        "draws": str(draws.resolve()), "out": str(given.out.resolve()), "shape": SHAPE, "each": EACH,
        "mean": MEAN, "std": STD,
        "runs": [
            {"side": side, "method": name, "seed": seed, "given": configuration(METHODS[name]) | {"seed": seed}}
            for side, seed, name in runs
        ],
    }  # fmt: skip
    driver = Path(__file__).with_name("pretrained_toolboxes.py")
    subprocess.run([sys.executable, driver], input=json.dumps(jobs), text=True, stdout=subprocess.DEVNULL)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
