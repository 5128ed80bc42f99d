"""Public toolboxes with pretrained backbones, driven from outside on a small vision transformer.

    python benchmarks/pretrained_toolboxes.py < jobs.json        # pretrained_parity.py writes the jobs, and starts this

Nothing of theirs is part of this project or a dependency, and nothing of this project is imported here. Sizes, data and
lengths are set from outside, and so are the values that learned parts start from and the order of the batches; the
rules of a method stay as they are, but for the entries of ``MENDS``.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import types
from collections.abc import Mapping
from functools import cache, partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from toolbox_parts import STARTS, Draws, GivenOrder, Instead, Manager, SmallTransformers, prepare
from torch import Tensor, nn

CPU = torch.device("cpu")
Answers = list[np.ndarray]  # after each experience, the class answered for each test image of all classes seen
MENDS = {  # where a toolbox departs from the paper of a method; ``mended=False`` leaves it as it is
    "ranpac": "scores are h W, not cosines",
    "l2p": "each test image has its own prompts; a test batch does not vote; ties of votes go to the first prompts",
    "dualprompt": "keys and values of an image are its own; no vote of test batches; no keys of experiences to come",
    "coda_prompt": "the schedule goes down from the second epoch on, not from the third",
    "inflora": "the same; the first experience protects all directions that the share takes, not one fewer",
}


def run_pilot(
    where: Path, small: SmallTransformers, data: Manager, given: dict[str, Any], draws: Draws, mended: bool
) -> Answers:
    """A method of LAMDA-PILOT.

    Args:
        given: Its configuration: ``model_name`` and all that it reads.
        mended: Whether what ``MENDS`` names is done.
    """
    prepare(where, "LAMDA-PILOT")
    resize_pilot(small)
    method = given["model_name"]
    learner = importlib.import_module("utils.factory").get_model(method, given | {
        "device": [CPU], "nb_classes": data.nb_classes, "nb_tasks": data.nb_tasks, "init_cls": data.each,
        "increment": data.each, "memory_size": 0, "pretrained": True,
    })  # fmt: skip
    learner.topk = 2
    learner._compute_accuracy = lambda *_: 0.0  # while it trains, for its log alone
    if method == "coda_prompt":
        learner._network.fc = nn.Linear(small.width, data.nb_classes)
    if method == "ranpac":
        _share_projection(learner, draws.tensors["layer"], given["ridge"])
    if mended and method == "dualprompt":
        _keep_prefixes_apart(learner._network.backbone.e_prompt)
    if mended and method == "l2p":
        torch.topk = _first_of_ties
    if mended and method == "coda_prompt":
        _start_schedule_at_once(importlib.import_module("models.coda_prompt"))
    if method == "slca":
        _share_samples(learner, draws)
    _share(learner, "_run" if method == "slca" else "_init_train", method, draws, given)
    answers = []
    for _ in range(data.nb_tasks):
        learner.incremental_train(data)
        answers.append(_mended_answers(method, learner) if mended else _answers(learner))
        learner.after_task()
    return answers


def _share(learner: Any, name: str, method: str, draws: Draws, given: Mapping[str, Any]) -> None:
    """Wrap the training of an experience, ``learner.name(loader, ...)``: same start, same order of batches."""
    plain = getattr(learner, name, None)

    def train(loader: Any, *rest: Any) -> None:
        start = draws.of(learner._cur_task)
        if plain is None or "order" not in start:
            return
        for module in learner._network.modules():
            if hasattr(module, "down_proj"):
                module.dropout = 0.0
        with torch.no_grad():
            STARTS[method](learner._network, start, learner._cur_task, learner._known_classes)
        plain(GivenOrder(loader.dataset, start["order"], given["batch_size"]), *rest)

    setattr(learner, name, train)


def _first_of_ties(values: Tensor, k: int, dim: int = -1, **_: bool) -> tuple[Tensor, ...]:
    """torch.topk, but for ties: there it takes any."""
    return tuple(part.narrow(dim, 0, k) for part in values.sort(dim=dim, descending=True, stable=True))


def _share_samples(learner: Any, draws: Draws) -> None:
    """SLCA's Gaussian samples, as they were drawn here, in the same batches."""
    code, plain, order = importlib.import_module("models.slca"), learner._stage2_compact_classifier, torch.randperm

    def align(size: int) -> None:
        start = draws.of(learner._cur_task)
        columns = [start["align_features"][:, epoch] for epoch in range(learner.ca_epochs)]
        chunks = iter([own for column in columns for own in column.split(256)])  # class after class, each epoch
        orders = iter(start["align_order"])
        code.MultivariateNormal = lambda *_: types.SimpleNamespace(sample=lambda **_: next(chunks))
        torch.randperm = lambda _: next(orders)
        try:
            plain(size)
        finally:
            torch.randperm = order

    learner._stage2_compact_classifier = align


def _answers(learner: Any) -> np.ndarray:
    found: np.ndarray = learner._eval_cnn(learner.test_loader)[0]
    return found[:, 0] if found.ndim > 1 else found


def _mended_answers(method: str, learner: Any) -> np.ndarray:
    """Answers by the rules of ``MENDS``; the learner trains on as it was."""
    net = learner._network
    if method == "ranpac":
        net.fc.forward = lambda h: {"logits": F.linear(h, net.fc.weight)}  # a new one in each experience
    if method not in ("l2p", "dualprompt"):
        return _answers(learner)
    pool = net.backbone.prompt if method == "l2p" else net.backbone.e_prompt
    votes, keys, pool.batchwise_prompt = pool.batchwise_prompt, pool.prompt_key, False
    if method == "dualprompt":
        pool.prompt_key = nn.Parameter(keys[: learner._cur_task + 1])
    found = _answers(learner)
    pool.batchwise_prompt, pool.prompt_key = votes, keys
    return found


def _keep_prefixes_apart(pool: Any) -> None:
    """Of (layers, 2, N, ...), which was reshaped to (layers, N, 2, ...), the two axes swapped as was meant."""
    plain = pool.forward

    def forward(*given: Any, **named: Any) -> Any:
        found = plain(*given, **named)
        layers, images, two, *rest = found["batched_prompt"].shape
        found["batched_prompt"] = found["batched_prompt"].reshape(layers, two, images, *rest).transpose(1, 2)
        return found

    pool.forward = forward


def _share_projection(learner: Any, layer: Tensor, ridge: float) -> None:
    """RanPAC with a given projection (D, M) and lambda."""
    plain = learner.setup_RP

    def set_up() -> None:
        plain()
        learner.W_rand = learner._network.W_rand = layer

    learner.setup_RP, learner.optimise_ridge_parameter = set_up, lambda *_: ridge


@cache
def resize_pilot(small: SmallTransformers) -> None:
    """Everything that has the width of ViT-B in PILOT's networks; once in a process."""
    importlib.import_module("timm").create_model = small.create  # type: ignore[attr-defined]
    nets: Any = importlib.import_module("utils.inc_net")
    plain, prompts = nets.get_backbone, nets.CodaPrompt

    def get_backbone(args: dict[str, Any], pretrained: bool = False) -> nn.Module:
        net: nn.Module = plain(args, pretrained)
        net.out_dim = small.width  # type: ignore[assignment]
        return net

    nets.get_backbone = get_backbone
    nets.CodaPrompt = lambda _, tasks, parameters: prompts(small.width, tasks, parameters, key_dim=small.width)
    head = nets.EaseCosineLinear
    head.forward_reweight = partialmethod(head.forward_reweight, out_dim=small.width)
    for end in ("adapter", "ease"):
        code = importlib.import_module(f"backbone.vit_{end}")
        setattr(code, f"vit_base_patch16_224_{end}", partial(small.with_adapters, code))


def run_inflora(
    where: Path, small: SmallTransformers, data: Manager, given: dict[str, Any], draws: Draws, mended: bool
) -> Answers:
    """InfLoRA, by its authors' code."""
    prepare(where, "InfLoRA")
    nets = importlib.import_module("models.sinet_inflora")

    def create(*_: Any, n_tasks: int, rank: int, **__: Any) -> nn.Module:
        return small.loaded(nets.ViT_lora_co(**small.shape, n_tasks=n_tasks, rank=rank))

    nets._create_vision_transformer = create
    code: Any = importlib.import_module("methods.inflora")
    code.np = np
    learner = code.InfLoRA({
        "net_type": "sip", "embd_dim": small.width, "total_sessions": data.nb_tasks, "init_cls": data.each,
        "memory_size": 0, "memory_per_class": 0, "fixed_memory": True, "device": [CPU], "dataset": "cifar100",
        "num_workers": 0, "EPSILON": 1e-8, "init_lr_decay": 0.1, "lrate_decay": 0.1, **given,
    })  # fmt: skip
    _share(learner, "train_function", "inflora", draws, given)
    extend = learner.update_DualGPM  # its numpy made arrays of tensors; the present one does not
    learner.update_DualGPM = lambda moments: extend([found.numpy() for found in moments])
    if mended:
        code.np = Instead(np, sum=_one_more)
        _start_schedule_at_once(code)
    answers = []
    for _ in range(data.nb_tasks):
        learner.incremental_train(data)
        answers.append(_answers(learner))
        learner.after_task()
    return answers


def _start_schedule_at_once(code: Any) -> None:
    """The quarter cosine of a module counts from epoch 0, where it sets its counter back to -1 when it is made."""
    plain = code.CosineSchedule

    class Schedule(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.last_epoch = 0

    code.CosineSchedule = Schedule


def _one_more(values: np.ndarray) -> Any:
    """In place of the one sum of truth values in InfLoRA: how many directions are below the share. The next belongs to
    it too."""
    return np.sum(values) + (values.dtype == bool)


@torch.no_grad()
def run_fecam(
    where: Path, small: SmallTransformers, data: Manager, given: dict[str, Any], draws: Draws, mended: bool
) -> Answers:
    """FeCAM's classifier, by its authors' code, on features of unit length."""
    features = _features(where, "FeCAM", small, data)
    base = importlib.import_module("models.base")
    rules = dict.fromkeys(("full_cov", "per_class", "norm_cov", "shrink"), True) | {"tukey": False, "ncm": False}
    learner = base.BaseLearner({"device": [CPU]})
    learner.args = rules | {"alpha1": 1, "alpha2": 0}
    train, test = (F.normalize(found) for found in features)
    slots = data.splits["train"][1]
    learner._cur_task, learner._cov_mat_shrink, means, answers = 1, [], [], []  # 0 is the nearest mean there
    for task in range(data.nb_tasks):
        for slot in range(task * data.each, (task + 1) * data.each):
            own = train[slots == slot]
            means.append(own.mean(0))
            learner._cov_mat_shrink.append(learner.shrink_cov(torch.tensor(np.cov(own.numpy().T))))
        learner._norm_cov_mat, learner._total_classes = learner.normalize_cov(), len(means)
        seen = test[data.splits["test"][1] < len(means)]
        answers.append(learner._maha_dist(seen.numpy(), None, means).argmin(0))
    return answers


@torch.no_grad()
def run_acil(
    where: Path, small: SmallTransformers, data: Manager, given: dict[str, Any], draws: Draws, mended: bool
) -> Answers:
    """ACIL, by its authors' code, with the same random layer as here."""
    train, test = _features(where, "Analytic-continual-learning", small, data)
    code = importlib.import_module("analytic.ACIL")
    learner = code.ACIL(small.width, nn.Flatten(), given["buffer_size"], given["gamma"], dtype=torch.double)
    learner.buffer.weight.copy_(draws.tensors["layer"].T)
    slots, answers = data.splits["train"][1], []
    for task in range(data.nb_tasks):
        here = (slots // data.each == task).nonzero().flatten()
        for rows in here.split(given["batch_size"]):
            learner.fit(train[rows], slots[rows])
        learner.update()
        seen = test[data.splits["test"][1] < (task + 1) * data.each]
        answers.append(learner(seen).argmax(1).numpy())
    return answers


def _features(where: Path, checkout: str, small: SmallTransformers, data: Manager) -> list[Tensor]:
    """Of training and test images, by the timm of the toolboxes."""
    prepare(where, checkout)
    net = small.create("plain", num_classes=0).eval()
    return [torch.cat([net(part) for part in images.split(100)]) for images, _ in data.splits.values()]


RUNNERS = {"pilot": run_pilot, "inflora": run_inflora, "fecam": run_fecam, "acil": run_acil}


def main() -> None:
    """Run all jobs of one checkout; each adds its line to the file of results. One that fails is told, others go on."""
    jobs = json.load(sys.stdin)
    torch.set_num_threads(1)
    images = load_file(Path(jobs["draws"]) / "images.safetensors")
    mean, std = (torch.tensor(jobs[name])[:, None, None] for name in ("mean", "std"))
    train, test = (((images[name] - mean) / std, images[f"{name}_slots"]) for name in ("train", "test"))
    data = Manager(train, test, jobs["each"])
    small = SmallTransformers(jobs["shape"], load_file(jobs["weights"]))
    failed = 0
    for job in jobs["runs"]:
        try:
            line = run(jobs, job, small, data)
        except Exception:  # theirs are of all sorts
            traceback.print_exc()
            failed += 1
            continue
        with Path(jobs["out"]).open("a") as file:
            file.write(json.dumps(line) + "\n")
    sys.exit(failed > 0)


def run(jobs: dict[str, Any], job: dict[str, Any], small: SmallTransformers, data: Manager) -> dict[str, Any]:
    """The line of one job."""
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002
    draws = Draws(Path(jobs["draws"]) / f"{job['method']}-{job['seed']}.safetensors")
    found = RUNNERS[jobs["code"]](Path(jobs["where"]), small, data, job["given"], draws, job["side"] == "toolbox")
    slots = data.splits["test"][1].numpy()
    curve = [100 * float((own == slots[: len(own)]).mean()) for own in found]
    answers = "".join(map(str, found[-1].tolist()))
    return {key: job[key] for key in ("side", "method", "seed")} | {"curve": curve, "answers": answers}


if __name__ == "__main__":
    main()
