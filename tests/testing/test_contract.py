"""Every strategy keeps the contract, and every cheat is caught by the rule that it breaks."""

from __future__ import annotations

from functools import cache

import pytest
from cheats import CASES, FILE, GLOBAL, Case, ClassAttribute, Honest
from honest import DESIGNS

from cil import adapt, strategies, testing
from cil.errors import ConfigError, ContractError, StateError
from cil.kinds.classes import CLASSES
from cil.kinds.classes.rules import BRIEF, demand_within
from cil.kinds.classes.subject import StrategySubject
from cil.memory import Budget
from cil.strategies import find
from cil.testing import check_strategy, check_stream, kind_of, rules, toy_stream, uneven_stream
from cil.testing.toy import RECIPE

TOO_MANY = {"exemplars": [99], "ledger": [{"totals": {"exact": {"total": 1}}}]}
RULES = {rule.__name__: rule for rule in CLASSES.rules()}
ON_TOYS = {rules.processes_make_no_difference.__name__: rules.processes_make_no_difference}  # in place of FAR_BACK
FAR_BACK = "what_was_not_kept_cannot_help"  # the same on six experiences
CHECKS = ON_TOYS | RULES
VARIANTS = [
    ("replay", {"selection": "random"}),
    ("replay", {"codec": "jpeg:90", "selection": "reservoir"}),
    ("icarl", {"selection": "closest_to_mean"}),
    ("wa", {"strength": "balanced"}),
    ("der", {"align": False}),
]
BRIEFLY = [  # what carries, or trains, something else than by default; hosts and second stages have tests of their own
    ("foster", {"keep": "teacher"}),
    ("coil", {"refresh": 1}),
    ("gem", {"statistics": "running"}),
]
TASK_LEARNERS = {  # rules that may fail by what each does, beside those below; the others run with -m slow
    "dynamic_budgeted": (
        "state_survives_the_round_trip",
        "only_the_state_crosses_a_boundary",
        "the_ledger_is_the_checkpoint",
        "predict_has_no_side_effects",
    ),
    "task_replay": ("only_the_state_crosses_a_boundary", "the_budget_is_never_exceeded", "uneven_streams_are_learned"),
    "dynamic": ("hooks_keep_to_themselves", "test_data_play_no_part_in_training"),
    "cumulative": ("only_the_state_crosses_a_boundary", "the_ledger_is_the_checkpoint", "uneven_streams_are_learned"),
    "pretrained_static": ("state_survives_the_round_trip", "the_ledger_is_the_checkpoint"),
    "task_linear_probe": ("predict_does_not_look_at_the_rest_of_the_batch",),
    "trgp": ("state_survives_the_round_trip", "the_ledger_is_the_checkpoint"),
    "ewc_online": ("only_the_state_crosses_a_boundary", "the_ledger_is_the_checkpoint"),
}
FOR_A_FEW = (  # that others find out too (two runs differ: resumed, and in processes), or that look at what all share
    "same_seed_same_bits",
    "test_data_play_no_part_in_training",
    "only_the_state_crosses_a_boundary",
    "the_future_is_not_known",
    "test_labels_play_no_part_in_answers",
    "training_starts_from_what_the_factory_gives",
    "the_budget_is_never_exceeded",  # strategies/test_all_strategies.py: the bill, under budgets of each kind
)
FEW = ("replay", "icarl", "derpp", "foster", "rmm", "podnet", "gdumb", "slda")  # for the others they run with -m slow
FAR = (*FEW, "memo", "ease", "dynamic", "dynamic_budgeted")  # who keep to FAR_BACK, for the others with -m slow
OF_STEPS = (  # rules that need several steps to stop at, and answers that were learned
    "a_resumed_run_ends_where_the_straight_run_ends",
    "predict_does_not_look_at_the_rest_of_the_batch",
)
ALL_LEARNERS = (*ON_TOYS, FAR_BACK, "a_resumed_run_ends_where_the_straight_run_ends")


def cases():
    """Each strategy with each rule."""
    for name in strategies.built_in():
        asked = {*CHECKS} - ({*FOR_A_FEW} if name not in FEW else set())
        if find(name).takes_task:
            asked = {*ALL_LEARNERS, *TASK_LEARNERS.get(name, ())}
        asked -= {*ON_TOYS} if name in FAR else {FAR_BACK}
        for rule in CHECKS:
            yield pytest.param(name, rule, marks=() if rule in asked else pytest.mark.slow)


@cache
def subject(name):
    """A strategy under test, which keeps one run for several rules."""
    return kind_of(find(name)).subject(name, {})


@cache
def cheating(cheat, brief):
    """A cheat under test, which keeps one run for several rules."""
    return StrategySubject(cheat, recipe=BRIEF if brief else RECIPE)


@cache
def outcome(cheat, rule):
    """What a rule says of a cheat; some cases look at two parts of it."""
    (found,) = testing.outcomes(cheating(cheat, rule not in OF_STEPS), [RULES[rule]])
    return found


@pytest.fixture(autouse=True)
def nothing_left_from_before():
    GLOBAL.clear()
    ClassAttribute.stash.clear()
    yield
    FILE.unlink(missing_ok=True)


@pytest.mark.parametrize(("name", "rule"), cases())
def test_every_strategy_keeps_every_rule(name, rule):
    CHECKS[rule](subject(name))


@pytest.mark.parametrize(("name", "hyperparameters"), VARIANTS)
def test_variants_keep_the_contract(name, hyperparameters):
    variant = StrategySubject(name, hyperparameters)
    for rule in CHECKS.keys() - {*FOR_A_FEW, FAR_BACK}:
        CHECKS[rule](variant)


@pytest.mark.parametrize(("name", "hyperparameters"), BRIEFLY)
def test_other_settings_keep_the_rules_of_what_is_carried(name, hyperparameters):
    other = StrategySubject(name, hyperparameters)
    for rule in (rules.processes_make_no_difference, rules.the_ledger_is_the_checkpoint):
        rule(other)


@pytest.mark.parametrize("name", ["derpp", "icarl"])
def test_the_rules_hold_where_all_images_fit(name):
    roomy = StrategySubject(name, budget=Budget(exemplars=1000))  # more than there are images
    for rule in ("a_resumed_run_ends_where_the_straight_run_ends", "the_ledger_is_the_checkpoint"):
        RULES[rule](roomy)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.cheat.__name__}-{case.rule}")
def test_each_cheat_is_caught_and_named(case: Case):
    if case.cheat.__name__ == "ReadsAFile":
        FILE.write_bytes(b"from an earlier run")
    found = outcome(case.cheat, case.rule)
    assert found.error is not None, f"{case.rule} did not see {case.cheat.__doc__}"
    assert case.says in found.error


def test_every_rule_has_a_cheat():
    assert {case.rule for case in CASES} == set(RULES)


def test_a_learner_that_cannot_take_its_own_state_fails_each_rule_with_that_error(monkeypatch):
    def refuse(self, run, learners):
        raise StateError("a table of another size")

    monkeypatch.setattr(StrategySubject, "answering_otherwise", refuse)
    subject = StrategySubject(Honest, recipe=BRIEF)
    for look in (subject.finished, subject.noted):
        with pytest.raises(StateError, match="a table of another size"):
            look()


def test_an_honest_plugin_raises_no_alarm():
    """In processes of their own, as authors check it; other designs meet the other rules below."""
    asked = (
        "state_survives_the_round_trip",
        "same_seed_same_bits",
        "hooks_keep_to_themselves",
        "the_live_learner_answers_as_the_rebuilt_one",
    )
    check_strategy(Honest, rules=[RULES[name] for name in asked])


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.__name__)
def test_honest_strategies_of_unlike_designs_raise_no_alarm(design):
    tried = StrategySubject(design, recipe=BRIEF)
    for rule in RULES.values():
        rule(tried)


def test_a_budget_that_is_exceeded_is_told_with_what_it_allows():
    with pytest.raises(ContractError, match=r"99 exemplars are carried; budget.exemplars allows 10"):
        demand_within(StrategySubject("replay"), TOO_MANY, Budget(exemplars=10))


def test_the_error_names_the_rules_that_are_broken():
    with pytest.raises(ContractError, match=r"GuessesTheTask breaks 1 rule.*predict_does_not_look_at_the_rest"):
        check_strategy(
            next(case.cheat for case in CASES if case.cheat.__name__ == "GuessesTheTask"),
            rules=[rule for name, rule in RULES.items() if name.startswith("predict") or name.endswith("round_trip")],
        )


def test_the_rules_are_those_of_the_streams_kind():
    assert kind_of(find("finetune")) is kind_of(find("finetune"), toy_stream()) is CLASSES
    with pytest.raises(ConfigError, match=r"another kind of run than that of stream 'toy.*', classes"):
        kind_of(adapt.find("tent"), toy_stream())


@pytest.mark.parametrize("stream", [toy_stream, uneven_stream])
def test_toy_streams_keep_the_contract_of_streams(stream):
    check_stream(stream())
