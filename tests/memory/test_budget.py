"""The budget: whole exemplars from what is left, limits that change, and messages that name every byte."""

from dataclasses import FrozenInstanceError, dataclass, field

import pytest
import torch

from cil.data import ArrayStore, Samples
from cil.errors import BudgetExceeded, ConfigError, ContractError
from cil.memory import UNLIMITED, Allowance, Budget, Entry, ExemplarMemory, Ledger, NextBoundary
from cil.memory.survey import aligned_to_der

RESNET32 = 463_504  # parameters
CIFAR = (3, 32, 32)


@dataclass
class Learner:
    """What a budget asks of a strategy, and no more."""

    fixed: dict[str, int]
    num_classes: int = 10
    image_shape: tuple[int, int, int] = CIFAR
    held: dict[str, ExemplarMemory] = field(default_factory=lambda: {"memory": ExemplarMemory()})

    def fixed_bytes(self, convention: str) -> int:
        return self.fixed[convention]

    def memories(self) -> dict[str, ExemplarMemory]:
        return self.held


def learner(exact: int, survey: int = 0, **options) -> Learner:
    return Learner({"exact": exact, "survey": survey}, **options)


def ledger(survey: dict[str, int] | None = None, **kinds: int) -> Ledger:
    entries = [Entry(kind, kind, "carried", "tensor", size, size, "uint8") for kind, size in kinds.items()]
    return Ledger(entries, survey)


def allowed(experience: int = 0, final_bytes: int | None = None, **terms) -> Allowance:
    """What a budget of these terms allows at the boundary after an experience."""
    return Allowance(Budget(**terms), NextBoundary(experience, final_bytes=final_bytes))


# how many exemplars ---------------------------------------------------------------------------------------------------


def test_the_difference_is_taken_first_and_floored_once():
    # 10 - 2 bytes hold two items of 3; floors taken one by one would say 3 - 0
    one = learner(2, image_shape=(1, 1, 2))
    assert allowed(limits=[10]).exemplar_slots(one) == 2
    assert allowed(limits=[11]).exemplar_slots(one) == 3


def test_under_the_survey_a_resnet32_in_ders_budget_gets_7431_exemplars():
    limit = 4 * 10 * RESNET32 + 2_000 * 3_072
    budget = allowed(limits=[limit], convention="survey")
    assert budget.exemplar_slots(learner(0, survey=4 * RESNET32)) == 7_431 == aligned_to_der(RESNET32, 3_072, 10)
    assert budget.exemplar_slots(learner(0, survey=4 * 10 * RESNET32)) == 2_000


def test_under_the_exact_convention_an_exemplar_costs_its_label_too():
    budget = allowed(limits=[1_000 + 3 * 3_073])
    assert budget.exemplar_slots(learner(1_000)) == 3
    assert budget.exemplar_slots(learner(1_001)) == 2
    assert budget.exemplar_slots(learner(1_000, num_classes=257)) == 2  # a label of two bytes


def test_side_data_leave_room_for_fewer():
    memory = ExemplarMemory(extras={"logits": "replay_logits"}, extra_bytes=40)
    assert allowed(limits=[3 * 3_073]).exemplar_slots(learner(0, held={"memory": memory})) == 2


def test_a_count_caps_the_exemplars_whatever_they_weigh_and_both_caps_hold():
    one = learner(10**9)
    assert allowed(exemplars=2_000).exemplar_slots(one) == 2_000
    assert allowed(exemplars=0).exemplar_slots(one) == 0
    assert allowed().exemplar_slots(one) == UNLIMITED
    assert allowed(exemplars=5, limits=[3 * 3_073]).exemplar_slots(learner(0)) == 3
    assert allowed(exemplars=2, limits=[3 * 3_073]).exemplar_slots(learner(0)) == 2


def test_two_memories_share_what_is_allowed():
    two = learner(0, held={"a": ExemplarMemory(), "b": ExemplarMemory(extras={"x": "other"}, extra_bytes=27)})
    assert allowed(exemplars=7).exemplar_slots(two) == 3
    assert allowed(limits=[2 * (3_073 + 3_100)]).exemplar_slots(two) == 2
    assert allowed(limits=[2 * (3_073 + 3_100) - 1]).exemplar_slots(two) == 1


def test_a_learner_without_memory_has_no_slots_in_a_budget_of_bytes():
    assert allowed(limits=[10**6]).exemplar_slots(learner(0, held={})) == 0


def test_what_is_left_is_never_negative():
    assert allowed(limits=[100]).remaining(learner(30)) == 70
    assert allowed(limits=[100]).remaining(learner(130)) == 0
    assert allowed(limits=[100]).exemplar_slots(learner(130)) == 0
    assert allowed(exemplars=10).remaining(learner(130)) == UNLIMITED


def test_each_boundary_has_its_limit_and_the_last_one_holds_for_all_later_ones():
    limits = [allowed(experience, limits=[10, 20]).limit for experience in range(4)]
    assert limits == [10, 20, 20, 20]
    assert allowed(exemplars=3).limit is None


def test_so_many_for_each_class_seen_are_a_cap_that_grows():
    budget = Allowance(Budget(per_class=20), NextBoundary(3, classes=7))
    assert (budget.exemplars, budget.cap, budget.exemplar_slots(learner(0))) == (140, 140, 140)
    budget.check(ledger(exemplars=5), 140, "replay")
    with pytest.raises(BudgetExceeded, match=r"carries 141 exemplars, budget.per_class is 20 \(140 for 7 classes\) "):
        budget.check(ledger(exemplars=5), 141, "replay")
    terms = Budget(per_class=20).description()
    assert (terms["kind"], terms["per_class"]) == ("per_class", 20) and "per_class" not in Budget().description()
    with pytest.raises(ConfigError, match=r"budget.per_class is 20 beside a budget aligned to another"):
        Budget.aligned("der", exemplars=20, per_class=20)


def test_a_growing_learner_counts_its_exemplars_from_its_size_now_or_at_the_end():
    small = learner(1_000)
    now = allowed(limits=[10_000], final_bytes=7_000)
    final = allowed(limits=[10_000], final_bytes=7_000, reserve="final")
    assert (now.remaining(small), final.remaining(small)) == (9_000, 3_000)
    assert final.remaining(learner(8_000)) == 2_000  # never more than what is left beside its size now


def test_only_memories_of_variable_size_are_filled_by_bytes():
    jpeg, raw = ExemplarMemory("jpeg"), ExemplarMemory()
    one = learner(100, held={"memory": jpeg})
    assert allowed(limits=[1_000]).capacity(one, jpeg) == 900
    assert allowed(limits=[1_000]).capacity(learner(100, held={"a": jpeg, "b": jpeg}), jpeg) == 450
    assert allowed(limits=[1_000]).capacity(one, raw) is None
    assert allowed(exemplars=10).capacity(one, jpeg) is None
    assert allowed(limits=[1_000], convention="survey").capacity(learner(100, 100), jpeg) is None


@pytest.mark.parametrize("num_classes", [10, 300])
def test_a_memory_filled_to_its_slots_fits_and_one_more_does_not(num_classes):
    one = learner(5_000, num_classes=num_classes, image_shape=(1, 4, 4))
    budget = allowed(limits=[6_000])
    slots = budget.exemplar_slots(one)
    for count, fits in ((slots, True), (slots + 1, False)):
        memory = ExemplarMemory()
        memory.replace([Samples(ArrayStore(torch.zeros(count, 1, 4, 4).byte()), torch.zeros(count).long())])
        sizes = {name: t.numel() * t.element_size() for name, (t, _) in memory.tensors(num_classes).items()}
        bill = ledger(parameters=5_000, exemplars=sizes["images"], labels=sizes["slots"])
        assert (budget.over(bill, count) is None) == fits


# what is over ---------------------------------------------------------------------------------------------------------


def test_a_state_over_its_bytes_is_refused_with_every_kind_and_its_bytes():
    bill = ledger(parameters=1_864_416, buffers=9_336, exemplars=6_144_000, labels=2_000, other=2_248)
    budget = allowed(limits=[7_400_000], experience=3)
    with pytest.raises(BudgetExceeded) as caught:
        budget.check(bill, 2_000, "icarl")
    assert str(caught.value) == (
        "icarl carries 8,022,000 bytes (exact), budget.limit is 7,400,000 after experience 3: exemplars 6,144,000, "
        "parameters 1,864,416, buffers 9,336, other 2,248, labels 2,000; raise budget.limit or budget.exemplars, "
        "or set budget.enforce=report"
    )


def test_each_convention_is_checked_against_its_own_total():
    bill = ledger({"parameters": 60, "exemplars": 30}, parameters=80, labels=30)
    assert allowed(limits=[100]).over(bill, 1) == "carries 110 bytes (exact), budget.limit is 100"
    assert allowed(limits=[90], convention="survey").over(bill, 1) is None
    assert allowed(limits=[89], convention="survey").over(bill, 1) == "carries 90 bytes (survey), budget.limit is 89"


def test_more_exemplars_than_allowed_are_refused_whatever_they_weigh():
    budget = allowed(exemplars=200)
    budget.check(ledger(exemplars=10**9), 200, "replay")
    with pytest.raises(BudgetExceeded, match=r"replay carries 201 exemplars, budget\.exemplars is 200 .*exemplars 5"):
        budget.check(ledger(exemplars=5), 201, "replay")


def test_a_report_only_looks_on_and_shrinking_must_have_helped():
    bill = ledger(parameters=11)
    allowed(limits=[10], enforce="report").check(bill, 0, "joint")
    with pytest.raises(BudgetExceeded):
        allowed(limits=[10], enforce="shrink").check(bill, 0, "icarl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "surveys"}, r"budget\.convention is 'surveys'; did you mean 'survey'"),
        ({"reserve": "later"}, r"budget\.reserve is 'later'.*final, now"),
        ({"enforce": "warn"}, r"budget\.enforce is 'warn'.*error, report, shrink"),
        ({"exemplars": -1}, r"budget\.exemplars is -1"),
        ({"limits": [5, 0]}, r"budget\.limit is \[5, 0\]"),
        ({"limits": []}, r"budget\.limit is \[\]"),
    ],
)
def test_a_wrong_budget_names_its_key_in_one_line(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Budget(**options)
    assert "\n" not in str(caught.value)


# in place of incoming images: budget.scope=carried+incoming ----------------------------------------------------------


def given_up(images, scope="carried+incoming", **caps):
    return Allowance(Budget(scope=scope, **caps), NextBoundary(given_up=images, image_bytes=3_072))


def test_rmms_fixture_on_cifar():
    """CIFAR-100, ten classes of 500 arrive, 30 % are given up: 2000 + 1500, 58 for each of 60 classes."""
    slots = given_up(1_500, exemplars=2_000).exemplar_slots(learner(0))
    assert slots == 3_500 and slots // 60 == 58


def test_what_is_given_up_counts_only_where_incoming_images_do():
    assert given_up(1_500, scope="carried", exemplars=2_000).exemplar_slots(learner(0)) == 2_000
    assert given_up(3, scope="carried", limits=[100]).limit == 100
    assert given_up(0, exemplars=2_000).exemplar_slots(learner(0)) == 2_000
    assert given_up(9).exemplar_slots(learner(0)) == allowed().exemplar_slots(learner(0))  # nothing is capped


def test_of_bytes_it_is_the_raw_images():
    budget = given_up(4, limits=[1_000 + 3 * 3_073])
    assert budget.limit == 1_000 + 3 * 3_073 + 4 * 3_072
    assert budget.exemplar_slots(learner(1_000, image_shape=CIFAR)) == 6  # an exemplar has its label too
    assert given_up(4, limits=[3 * 3_072], convention="survey").exemplar_slots(learner(0)) == 7


def test_a_state_is_held_to_the_cap_and_what_was_given_up():
    budget = given_up(5, exemplars=10)
    budget.check(ledger(), 15, "rmm")
    with pytest.raises(BudgetExceeded, match=r"carries 16 exemplars, budget.exemplars is 10, and 5 incoming images"):
        budget.check(ledger(), 16, "rmm")
    with pytest.raises(BudgetExceeded, match=r"carries 11 exemplars, budget.exemplars is 10 after experience 0"):
        given_up(5, scope="carried", exemplars=10).check(ledger(), 11, "rmm")
    bytes_ = given_up(1, limits=[100])
    bytes_.check(ledger(exemplars=3_172), 1, "rmm")
    with pytest.raises(BudgetExceeded, match=r"3,173 bytes \(exact\), budget.limit is 100, and 1 incoming images"):
        bytes_.check(ledger(exemplars=3_173), 1, "rmm")


def test_another_scope_and_a_limit_for_each_experience_are_refused():
    with pytest.raises(ConfigError, match=r"budget\.scope is 'incoming'.*carried\+incoming"):
        Budget(scope="incoming")
    with pytest.raises(ConfigError, match=r"budget\.scope is carried\+incoming with 2 limits"):
        Budget(scope="carried+incoming", limits=[1, 2])
    Budget(scope="carried", limits=[1, 2])


# who may change it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exemplars", "limits", "budget", "boundary", "cap", "anything"])
def test_a_learner_cannot_set_anything_of_what_it_may_carry(name):
    allowance = allowed(exemplars=10)
    with pytest.raises(ContractError, match=rf"budget\.{name} cannot be set by a learner"):
        setattr(allowance, name, 10_000)
    with pytest.raises(ContractError):
        delattr(allowance, name)
    assert allowance.cap == 10


def test_what_a_learner_is_lent_is_a_copy_that_is_not_checked_again(monkeypatch):
    """A learner is grown once for each experience behind it, and lent a budget each time."""
    budget = Budget(exemplars=3, limits=(5, 6), caps={"a": 1.0})
    monkeypatch.setattr("cil.memory.budget.check_value", lambda *given: pytest.fail("checked again"))
    lent = Allowance(budget, NextBoundary(experience=1)).budget
    assert lent == budget and lent is not budget and lent.caps is not budget.caps
    assert Allowance(budget).budget.limits == (5,)  # of the first experience


def test_what_a_user_asked_for_does_not_change():
    budget = Budget(exemplars=10)
    with pytest.raises(FrozenInstanceError):
        budget.exemplars = 20


def test_a_description_says_the_kind_and_what_is_followed():
    assert Budget().description()["kind"] == "none"
    assert Budget(exemplars=3).description()["kind"] == "exemplars"
    each = Budget(limits=[5, 6]).description()
    assert (each["kind"], each["limits"], each["at"]) == ("bytes", [5, 6], "each")
    aligned = Budget.aligned("der", 200, model="resnet20").description()
    assert {key: aligned[key] for key in ("kind", "to", "to_model", "exemplars", "limits", "at")} == {
        "kind": "aligned", "to": "der", "to_model": "resnet20", "exemplars": 200, "limits": None, "at": "end"
    }  # fmt: skip
