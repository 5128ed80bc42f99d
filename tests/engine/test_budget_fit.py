"""The largest method that a budget holds: LibContinual's table of fits, what is refused, what a run says of it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from toys import Flat, factory, small_stream

from cil import load, plan
from cil.cli.build import build
from cil.cli.compose import compose
from cil.engine.budget_fit import fitted
from cil.engine.dry_run import check_bills, dry_run
from cil.engine.recipe import Recipe
from cil.errors import BudgetExceeded, ConfigError
from cil.memory import Budget
from cil.models import NetFactory, build_backbone
from cil.strategies import Strategy, find
from cil.strategies.base import check
from cil.streams import Signature
from cil.testing.toy import toy_stream

LIMITS = (4_000_000, 16_000_000, 100_000_000)
WIDE = partial(NetFactory, partial(Flat, feature_dim=768), pretrained="public", meta=True)  # as wide as ViT-B/16
VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 768, "depth": 1, "num_heads": 12}  # its prompts are as ViT-B/16's


def whole(classes: int) -> list[Signature]:
    """All classes at once, 500 images each."""
    return signatures([classes])


def signatures(classes: list[int]) -> list[Signature]:
    """Of experiences of so many classes each, 500 images a class."""
    made, seen = [], 0
    for index, count in enumerate(classes):
        slots = tuple(range(seen, seen + count))
        seen += count
        made.append(Signature(index, slots, slots, dict.fromkeys(slots, 500), (3, 32, 32), seen))
    return made


def libcontinual(limit: int, **terms) -> Budget:
    return Budget(limits=[limit], convention="libcontinual", fit=True, **terms)


@pytest.mark.parametrize(
    ("classes", "sizes"), [(100, (656, 1_612, 4_584)), (200, (626, 1_573, 4_539))], ids=["K=100", "K=200"]
)
def test_the_projection_of_ranpac_as_in_the_table(classes, sizes):
    """4 M^2 + 4 M (768 + K) bytes."""
    make = partial(find("ranpac"), projection="stored", ridge=1.0)
    for limit, size in zip(LIMITS, sizes, strict=True):
        found = fitted(make, WIDE, whole(classes), libcontinual(limit), "ranpac")
        assert (found.key, found.value, found.limit) == ("size", size, limit)
        assert found.bytes == 4 * size * (size + 768 + classes)
        bills = dry_run(partial(make, size=size + 1), WIDE, whole(classes), libcontinual(limit))
        with pytest.raises(BudgetExceeded, match="ranpac will carry"):  # one more is refused
            check_bills(bills, libcontinual(limit), "ranpac")


def test_the_16_and_439_megabytes_of_ranpac_as_published():
    """With 200 classes, 1,573 and 10,000 random features."""
    make = partial(find("ranpac"), projection="stored", ridge=1.0)
    for size, total in ((1_573, 15_987_972), (10_000, 438_720_000)):
        found = dry_run(partial(make, size=size), WIDE, whole(200), Budget(side_bytes=None))[-1]
        assert found.total["libcontinual"] == total


def test_the_pool_of_l2p_as_published_and_as_in_the_table():
    make_net = public_vit(1)
    published = dry_run(find("l2p"), make_net, whole(100), Budget())[-1]
    assert published.total["libcontinual"] == 491_920  # 46,080 numbers in pool and keys, and the head
    for limit, prompts in zip(LIMITS, (200, 851, 5_408), strict=True):
        found = fitted(find("l2p"), make_net, whole(100), libcontinual(limit), "l2p")
        assert (found.key, found.value, found.bytes) == ("prompts", prompts, 307_600 + 18_432 * prompts)
    found = fitted(find("l2p"), make_net, whole(100), libcontinual(399_000), "l2p")
    assert (found.value, found.bytes, found.fits) == (5, 399_760, False)
    assert fitted(partial(find("l2p"), top=7), make_net, whole(100), libcontinual(399_000), "l2p").value == 7


def test_the_components_of_coda_prompt_as_in_the_table():
    """153,600 bytes a component and 307,600 of the head."""
    make_net = public_vit(5)
    for limit, components in zip(LIMITS, (24, 102, 649), strict=True):
        found = fitted(find("coda_prompt"), make_net, whole(100), libcontinual(limit), "coda_prompt")
        assert (found.key, found.value, found.bytes) == ("components", components, 307_600 + 153_600 * components)


@pytest.fixture(scope="module")
def tenths():
    """A hundred classes in ten experiences."""
    return signatures([10] * 10)


def public_vit(depth):
    backbone = partial(build_backbone, "timm:vit_tiny_patch16_224", 3, 32, **{**VIT, "depth": depth})
    return partial(NetFactory, backbone, pretrained="public", meta=True)


def test_the_length_of_dualprompts_experts(tenths):
    """G 2 * 2 * 5 * 768, ten keys of 768 and experts of 3 * 2 * L * 768, 76,900 of the head; 4 bytes each.

    With three keys an experience and 3 and 10 tokens it is LibContinual's 493,056 numbers.
    """
    for limit, length in ((1_000_000, 3), (4_000_000, 19)):
        found = fitted(find("dualprompt"), public_vit(5), tenths, libcontinual(limit), "dualprompt")
        assert (found.key, found.value) == ("expert_length", length)
        assert found.bytes == 61_440 + 10 * 3_072 + 184_320 * length + 307_600 <= limit < found.bytes + 184_320
    theirs = partial(find("dualprompt"), keys="block", general_length=3, expert_length=10)
    assert dry_run(theirs, public_vit(5), tenths, Budget())[-1].total["libcontinual"] == 4 * 493_056 + 307_600


def test_what_sizes_the_tuner_of_aper(tenths):
    """Two blocks of adapters take 2 * 4 * (2 * 768 r + r + 768) bytes, prompts 4 * 768 each; prototypes 614,400."""
    for options, key, own, one in (
        ({}, "rank", 2 * 4 * 768, 2 * 4 * 1_537), ({"tuner": "shallow_prompts"}, "prompts", 0, 3_072),
        ({"tuner": "deep_prompts"}, "prompts", 0, 2 * 3_072),
    ):  # fmt: skip
        found = fitted(partial(find("aper"), **options), public_vit(2), tenths, libcontinual(1_000_000), "aper")
        assert found.key == key and found.bytes == 614_400 + own + one * found.value
        assert found.bytes <= 1_000_000 < found.bytes + one
    for tuner in ("scale_shift", "finetune"):
        assert fitted(partial(find("aper"), tuner=tuner), public_vit(2), tenths, libcontinual(10**9), "aper") is None


class Bank(Strategy):
    """Twelve bytes of statistics for each of ``rows``, from the second experience on 24."""

    fits = "rows"

    def __init__(self, make_net, budget, *, rows: int = 1, grows: bool = True):
        super().__init__(make_net, budget)
        self.rows = rows if grows else 1
        self.keep("bank", torch.zeros(0), kind="statistics")

    def grow(self, signature):
        super().grow(signature)
        self.bank = torch.zeros(self.rows * (3 if signature.index == 0 else 6))

    def loss(self, batch):
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


def test_the_limit_holds_at_each_experience_and_each_has_its_own():
    """Heads of two and four classes take 40 and 80 bytes."""
    signatures = small_stream(2).signatures
    whole_stream = Budget(limits=[200], fit=True)
    assert fitted(Bank, partial(factory, meta=True), signatures, whole_stream, "bank").value == 5  # 80 + 24 * 5
    each = Budget(limits=[75, 10_000], fit=True)
    assert fitted(Bank, partial(factory, meta=True), signatures, each, "bank").value == 2  # 40 + 12 * 2


def test_methods_that_name_nothing_and_budgets_that_do_not_ask_are_left_alone():
    signatures, make_net = small_stream(2).signatures, partial(factory, meta=True)
    assert fitted(find("replay"), make_net, signatures, libcontinual(10_000), "replay") is None
    assert fitted(Bank, make_net, signatures, Budget(limits=[200]), "bank") is None


def test_bytes_that_do_not_grow_and_budgets_without_bytes_are_refused():
    with pytest.raises(ConfigError, match=r"bank carries no more bytes \(exact\) with a larger strategy\.rows"):
        stuck = partial(Bank, grows=False)
        fitted(stuck, partial(factory, meta=True), small_stream(1).signatures, Budget(limits=[200], fit=True), "bank")
    with pytest.raises(ConfigError, match=r"^budget\.fit is true, and no bytes are capped; choose budget=bytes"):
        Budget(exemplars=20, fit=True)
    with pytest.raises(ConfigError, match=r"^budget\.fit is 3"):
        Budget(limits=[5], fit=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [("acil", {}), ("ds_al", {"carries": "recursion"}), ("ranpac", {"statistics": "float64"}), ("l2p", {})],
)
def test_statistics_that_no_memory_holds_are_billed_and_not_made(name, options):
    """The survey charges no statistics, so that each size fits: tried up to 2^28, of which a matrix is 2^59 bytes."""
    budget = Budget(limits=[10**8], convention="survey", side_bytes=None, fit=True)
    flat = partial(NetFactory, partial(Flat, feature_dim=8), pretrained="public", meta=True)
    make_net, key = (public_vit(1), "prompts") if name == "l2p" else (flat, "size")
    with pytest.raises(ConfigError, match=rf"{name} carries no more bytes \(survey\) with a larger strategy\.{key}"):
        fitted(partial(find(name), **options), make_net, whole(3), budget, name)


class Limited(Bank):
    """Takes no more than four rows."""

    def __init__(self, make_net, budget, *, rows: int = 1):
        check.between(1, 4, "limited", rows=rows)
        super().__init__(make_net, budget, rows=rows)


class Odd(Bank):
    """An even number of rows takes half the bytes."""

    def grow(self, signature):
        super().grow(signature)
        self.bank = torch.zeros(6 * self.rows // (1 if self.rows % 2 else 2))


def test_the_largest_that_a_method_takes_and_bytes_that_fall():
    given = (partial(factory, meta=True), small_stream(2).signatures, Budget(limits=[200], fit=True))
    assert fitted(Limited, *given, "limited").value == 4  # five would fit, as in Bank
    with pytest.raises(ConfigError, match=r"odd carries 272 bytes \(exact\) with strategy\.rows=16, and 392 with 13"):
        fitted(Odd, *given, "odd")


def test_a_run_has_the_fitted_value_and_says_so(tmp_path):
    budget = Budget(limits=[60_000], fit=True)
    run = plan("ranpac", toy_stream(), "smallconv", budget, run_dir=tmp_path)
    found, work = run.work.fit, run.work
    size = found.value
    assert work.bill[-1].total["exact"] == found.bytes <= 60_000
    assert found.bytes + 4 * (2 * size + 1) + 4 * 6 > 60_000  # G and Q of one more
    assert run.identity["config"]["strategy"]["size"] == size and run.identity["budget"]["fit"] is True
    assert work.bills()["fitted"] == {
        "key": "size", "value": size, "bytes": found.bytes, "limit": 60_000, "convention": "exact",
    }  # fmt: skip
    assert any(line.startswith(f"ranpac: budget.fit sets strategy.size={size}") for line in work.bills()["warnings"])
    assert "fit" not in plan("ranpac", toy_stream(), "smallconv", run_dir=tmp_path).identity["budget"]


def test_a_method_whose_smallest_value_does_not_fit_is_over_its_budget_and_says_so(tmp_path):
    run = plan("ranpac", toy_stream(), "smallconv", Budget(limits=[1_000], fit=True), run_dir=tmp_path)
    says = r"^with strategy\.size=1, its smallest, ranpac will carry [\d,]+ bytes \(exact\) without a single exemplar"
    with pytest.raises(BudgetExceeded, match=says):
        run.work.check_budget()
    assert run.work.excess().startswith("with strategy.size=1") and not any("fit" in one for one in run.work.warnings())


def test_what_was_fitted_is_loaded_as_it_was_fitted(tmp_path):
    budget = Budget(limits=[60_000], fit=True)
    run = plan("acil", toy_stream(), "smallconv", budget, recipe=Recipe(epochs=1), run_dir=tmp_path, progress=False)
    run.execute()
    assert load(tmp_path).learner.size == run.work.fit.value > 1


def test_a_value_of_ones_own_beside_fit_is_refused_and_that_of_a_file_is_not():
    with pytest.raises(ConfigError, match=r"^strategy\.rows is 3, and budget\.fit=true sets it to the largest"):
        given = (partial(factory, meta=True), small_stream(2).signatures, Budget(limits=[200], fit=True))
        fitted(partial(Bank, rows=3), *given, "bank")
    asked = ["strategy=ranpac", "stream=split_digits", "budget=bytes", "budget.limit=200_000", "budget.fit=true"]
    assert build(compose(asked)).work.fit.value > 100  # conf/strategy/ranpac.yaml says a size too
    with pytest.raises(ConfigError, match=r"^strategy\.size is 50, and budget\.fit=true"):
        build(compose([*asked, "strategy.size=50"]))
