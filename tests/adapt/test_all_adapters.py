"""Every adapter keeps the contract, and every cheat is caught by the rule that it breaks."""

from __future__ import annotations

from functools import cache

import pytest
from adapter_cheats import CASES, GLOBAL, Case, Honest, RemembersAcrossAReset
from recount import recount

from cil import adapt, testing
from cil.errors import ContractError
from cil.kinds.adaptation import ADAPTATION
from cil.kinds.adaptation.subject import AdapterSubject
from cil.testing import check_adapter, rules
from cil.testing.shifts import toy_adaptation, toy_shifts

RULES = {rule.__name__: rule for rule in ADAPTATION.rules()}
FOR_A_FEW = (  # that others find out too (two runs differ: resumed, and in processes), or that look at what all share
    "same_seed_same_bits",
    "labels_and_domains_are_not_looked_at",
    "later_images_are_not_known",
)
FEW = ("tent", "rotta", "ecotta")  # for the others they run with -m slow
ON_TOYS = {rules.processes_make_no_difference.__name__: rules.processes_make_no_difference}  # in place of FAR_BACK
FAR_BACK = "what_was_not_kept_cannot_help"  # the same on seven segments
CHECKS = ON_TOYS | RULES


@pytest.fixture(autouse=True)
def nothing_left_from_before():
    GLOBAL.clear()
    RemembersAcrossAReset.stash.clear()


subject = cache(AdapterSubject)  # keeps one run for several rules


def cases():
    """Each adapter with each rule."""
    for name in adapt.built_in():
        left = {*ON_TOYS} if name in FEW else {*FOR_A_FEW, FAR_BACK}
        for rule in CHECKS:
            yield pytest.param(name, rule, marks=pytest.mark.slow if rule in left else ())


@pytest.mark.parametrize(("name", "rule"), cases())
def test_every_adapter_keeps_every_rule(name, rule):
    CHECKS[rule](subject(name))


@pytest.mark.parametrize("batch_size", [5, 24])
@pytest.mark.parametrize("name", adapt.built_in())
def test_the_bill_is_every_operation_of_the_training(tmp_path, name, batch_size):
    """Also of updates that are not made at each batch."""
    found = recount(toy_adaptation(name, toy_shifts(), tmp_path, batch_size=batch_size))
    assert found.told == found.counted


def test_updates_that_are_hidden_from_the_third_batch_on_are_billed(tmp_path):
    class Later(adapt.find("tent")):
        met = 0

        def adapt_and_predict(self, images):
            self.met += 1
            for _ in range(20 if self.met > 2 else 0):
                super().adapt_and_predict(images)
            return super().adapt_and_predict(images)

    found = recount(toy_adaptation(Later, toy_shifts(), tmp_path, batch_size=3))
    assert found.told == found.counted


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.cheat.__name__}-{case.rule}")
def test_each_cheat_is_caught_and_named(case: Case):
    (outcome,) = testing.outcomes(AdapterSubject(case.cheat), [RULES[case.rule]])
    assert outcome.error is not None, f"{case.rule} did not see {case.cheat.__doc__}"
    assert case.says in outcome.error


def test_every_rule_has_a_cheat():
    assert {case.rule for case in CASES} == set(RULES)


def test_an_honest_plugin_passes_all():
    check_adapter(Honest)


def test_the_error_names_the_rules_that_are_broken():
    with pytest.raises(ContractError, match=r"PeeksAtTheLabels breaks 1 rule.*labels_and_domains_are_not_looked_at"):
        check_adapter(
            next(case.cheat for case in CASES if case.cheat.__name__ == "PeeksAtTheLabels"),
            rules=[rule for name, rule in RULES.items() if name.endswith(("looked_at", "round_trip", "as_they_are"))],
        )
