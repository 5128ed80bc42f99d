"""The budget of LibContinual: its published totals to the byte, and what is charged and what is free."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cil.api import networks
from cil.contract import Holder, freeze
from cil.contract.holder import reference_of
from cil.data import Samples
from cil.data.samples import ArrayStore
from cil.engine.dry_run import dry_run
from cil.memory import Allowance, Budget, ExemplarMemory, Ledger
from cil.memory.libcontinual import item, paid
from cil.strategies import Strategy, find
from cil.streams import Signature

CIFAR = (3, 32, 32)


def signatures(classes: int, experiences: int, shape: tuple[int, int, int] = CIFAR) -> list[Signature]:
    """Of classes of 500 images, that arrive in equal portions."""
    each = classes // experiences
    slots = [tuple(range(t * each, (t + 1) * each)) for t in range(experiences)]
    return [Signature(t, own, own, dict.fromkeys(own, 500), shape, (t + 1) * each) for t, own in enumerate(slots)]


def held(**things: Tensor | nn.Module) -> Holder:
    """A holder of modules (``parameters``) and tensors (``statistics``)."""
    holder = Holder()
    for name, thing in things.items():
        holder.keep(name, thing, kind="parameters" if isinstance(thing, nn.Module) else "statistics")
    return holder


def numbers(count: int) -> nn.Module:
    """A module of so many parameters, without values."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(count, device="meta"))
    return module


def test_icarl_as_published():
    make_net = partial(networks(CIFAR, "resnet32", options={"shortcut": "conv"}), seed=0, meta=True)
    bill = dry_run(find("icarl"), make_net, signatures(100, 10), Budget(exemplars=2000))[-1]
    assert bill.exemplars == 2000 and bill.fixed["libcontinual"] == 2 * 4 * 472_756  # the network and its teacher
    assert bill.total["libcontinual"] == 9_926_048


def test_gpm_as_published():
    sizes = (48, 576, 512, 1024, 2048)
    bases = {f"basis_{n}": torch.empty(d, d, device="meta") for n, d in enumerate(sizes)}
    assert held(net=numbers(6_704_128), **bases).fixed_bytes("libcontinual") == 50_172_928
    with_norms = held(net=numbers(6_704_128 + 9_088), **bases)  # of batch norm, which the paper leaves out
    assert with_norms.fixed_bytes("libcontinual") == 50_209_280


def test_moe_adapters_as_published():
    holder = held(adapters=numbers(4_104_292))
    clip = numbers(149_620_737).requires_grad_(False)
    holder.keep("clip", clip, kind="parameters", reference=reference_of(clip, "public"))
    assert holder.fixed_bytes("libcontinual") == 16_417_168  # the public network is free


class Small(Strategy):
    """Two networks, one of them frozen, a teacher, statistics, metadata, exemplars."""

    def __init__(self, make_net, budget):
        super().__init__(make_net, budget)
        self.keep("frozen", nn.Linear(5, 5).requires_grad_(False), kind="parameters")
        self.keep("teacher", None, kind="teacher")
        self.keep("moments", {"net": torch.zeros(3)}, kind="optimizer", lifetime="carried")
        self.keep("sums", torch.zeros(4, dtype=torch.float64), kind="statistics")
        self.keep("note", "free")
        self.keep("memory", ExemplarMemory("jpeg:90", "random", {"logits": "replay_logits"}, 8), kind="exemplars")

    def build_net(self):
        return nn.BatchNorm2d(3)

    def grow_net(self, signature):
        pass


def test_what_is_charged_and_what_is_free():
    learner = Small(None, Allowance(Budget()))
    fixed = {"parameters": 24 + 120, "teacher": 24, "optimizer": 12, "statistics": 32}
    learner.grow(signatures(4, 1, (3, 8, 8))[0])
    assert learner._libcontinual() == fixed
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    slots = torch.zeros(6, dtype=torch.int64)
    samples = Samples(ArrayStore(pixels), slots, extras={"logits": torch.zeros(6, 2)})
    learner.memory.add(0, samples)
    frozen = freeze(learner, (3, 8, 8), 4)
    images = frozen.state.tensors["memory.images"].numel()
    assert frozen.state.libcontinual == fixed | {"exemplars": images, "replay_logits": 48}
    ledger = frozen.ledger()
    assert ledger.by_kind("libcontinual") == frozen.state.libcontinual
    assert ledger.to_json()["totals"]["libcontinual"]["total"] == sum(fixed.values()) + images + 48
    assert learner.memory.item_bytes((3, 8, 8), 4, "libcontinual") == 3 * 64 + 8  # as if it were raw, no label


def test_charges_add_up_without_what_is_free():
    assert paid({"parameters": 4, "buffers": 9}, {"exemplars": 5, "labels": 1, "parameters": 2, "teacher": 0}) == {
        "parameters": 6, "exemplars": 5,
    }  # fmt: skip
    assert item({"features": 12, "labels": 1}) == 12


def test_the_budget_is_held_under_it():
    ledger = Ledger([], libcontinual={"parameters": 11})
    over = Allowance(Budget(limits=[10], convention="libcontinual")).over(ledger, 0)
    assert over == "carries 11 bytes (libcontinual), budget.limit is 10"
    assert Allowance(Budget(limits=[11], convention="libcontinual")).over(ledger, 0) is None


@pytest.mark.parametrize("limit, exemplars", [(4_000_000, 70), (16_000_000, 3_977), (100_000_000, 31_320)])
def test_the_published_budgets_in_exemplars_of_icarl(limit: int, exemplars: int):
    make_net = partial(networks(CIFAR, "resnet32", options={"shortcut": "conv"}), seed=0, meta=True)
    learner = find("icarl")(make_net(), Allowance(Budget(limits=[limit], convention="libcontinual")))
    learner.grow(signatures(100, 1)[0])
    assert learner.budget.exemplar_slots(learner) == exemplars
