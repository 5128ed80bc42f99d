"""Rules that strategies keep, beside those of learners of all kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from cil.engine.recipe import Recipe
from cil.errors import BudgetExceeded, CilError, ContractError
from cil.kinds.classes import knowledge
from cil.kinds.classes.subject import StrategySubject
from cil.memory import Budget
from cil.memory.tensor_bits import same_bits
from cil.testing import carried, rules
from cil.testing.compare import close, demand
from cil.testing.toy import EXEMPLARS, RECIPE

BRIEF = Recipe(epochs=1, batch_size=100, log_every=1)  # where what is carried matters, and not what is learned


# what is carried ----------------------------------------------------------------------------------------------------


def only_the_state_crosses_a_boundary(subject: StrategySubject) -> None:
    """With a state from one past, amid what another past left behind, the last experiences go as they went before.

    Whatever else an experience leaves (globals, files, shared memory, other people's objects) is then of the other
    past, and shows.
    """
    one = subject.on_long()
    first, past, how = one.finished(), one.long(seed=5), "from the same state after two pasts"
    began = first.boundaries[-3]  # the last three experiences of both pasts are the same
    with rules.of_another_past(one, how):
        with one.fresh(stream=past, until=began):
            pass
        with one.fresh(stream=past, start=began) as again:
            rules.runs_are_the_same(one, how, first, again)


def metadata_is_charged(subject: StrategySubject) -> None:
    """Every byte of metadata that is carried stands in the ledger."""
    run = subject.finished()
    for boundary in run.boundaries:
        entries = run.record.results["ledger"][boundary]["entries"]
        charged = sum(entry["bytes"] for entry in entries if entry["source"] == "meta")
        carried = run.stored(boundary)["meta"]
        demand(charged == carried, f"{carried} bytes of metadata are carried, {charged} are charged")


def the_budget_is_never_exceeded(subject: StrategySubject) -> None:
    """Under a budget of exemplars, and under one of bytes, no boundary is over it."""
    try:
        demand_within(subject, subject.finished().record.results, Budget(exemplars=EXEMPLARS))
        fixed = max(bill.fixed["exact"] for bill in subject.finished().work.bill)
        pixels = math.prod(subject.stream.image_shape)  # of the same structure, half as many exemplars
        budget = Budget(limits=[fixed + EXEMPLARS // 2 * (pixels + 1)])
        with subject.fresh(budget=budget, recipe=BRIEF) as run:
            demand_within(subject, run.record.results, budget)
    except BudgetExceeded as error:
        raise ContractError(str(error)) from error


def demand_within(subject: StrategySubject, results: Mapping[str, Any], budget: Budget) -> None:
    """Demand that no boundary in the results of a run is over a budget, but for a bound."""
    for index, count in () if subject.target.bound else enumerate(results["exemplars"]):
        total = results["ledger"][index]["totals"]["exact"]["total"]
        limit = budget.limits[-1] if budget.limits else None
        for held, allowed, key, unit in (
            (total, limit, "limit", "bytes"),
            (count, budget.exemplars, "exemplars", "exemplars"),
        ):
            demand(
                allowed is None or held <= allowed,
                f"after experience {index} {held:,} {unit} are carried; budget.{key} allows {allowed or 0:,}: ask "
                f"self.budget.exemplar_slots(self) how many exemplars fit",
            )


def the_live_learner_answers_as_the_rebuilt_one(subject: StrategySubject) -> None:
    """A learner right after an experience, given its own state, answers as the one that is rebuilt from that state."""
    otherwise = subject.noted()["otherwise"]
    if otherwise:
        names = ", ".join(subject.unkept()) or "a buffer that is not persistent, or what is only set in training"
        raise ContractError(
            f"after experience {otherwise[0]} the learner answers otherwise than the one rebuilt from its state; "
            f"what predict reads must be named by self.keep(...), and is not: {names}"
        )


# answers ------------------------------------------------------------------------------------------------------------


def predict_scores_each_class_seen(subject: StrategySubject) -> None:
    """One column for each class seen, numbers all, after every experience; images alone are given."""
    run = subject.finished()
    images = run.images()
    for boundary, learner in run.learners():
        scores = run.answers(learner, images)
        demand(
            tuple(scores.shape) == (len(images), learner.num_classes),
            f"predict gave {tuple(scores.shape)} for {len(images)} images and {learner.num_classes} classes",
        )
        demand(not bool(scores.isnan().any()), f"predict gave NaN after experience {boundary}")


def predict_has_no_side_effects(subject: StrategySubject) -> None:
    """Asked again, a learner gives the same answers, and its state has not moved."""
    run = subject.finished()
    images = run.images()
    for _, learner in run.learners():
        before = {name: tensor.clone() for name, tensor in learner.state().tensors.items()}
        first = run.answers(learner, images)
        run.answers(learner, images.flip(0)[: len(images) // 2] * 0.5)
        second = run.answers(learner, images)
        demand(same_bits(first, second), "predict answers differently when asked again")
        after = learner.state().tensors
        moved = [name for name, tensor in before.items() if not same_bits(tensor, after[name])]
        demand(not moved, f"predict changed {', '.join(moved[:3])}")


def predict_does_not_look_at_the_rest_of_the_batch(subject: StrategySubject) -> None:
    """An image's scores depend neither on the order nor on the company it comes in, unless it is ``transductive``."""
    if subject.target.transductive:
        return
    run = subject.finished()
    images = run.images()
    for _, learner in run.learners():
        whole = run.answers(learner, images)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        shuffled = torch.empty_like(whole)
        shuffled[order] = run.answers(learner, images[order])
        alone = torch.cat([run.answers(learner, image[None]) for image in images])
        parts = torch.cat([run.answers(learner, part) for part in torch.split(images, 5)])
        for name, other in (("order", shuffled), ("company", alone), ("company", parts)):
            demand(close(whole, other), f"predict depends on the {name} of the images in a batch")


# awkward streams ----------------------------------------------------------------------------------------------------


def uneven_streams_are_learned(subject: StrategySubject) -> None:
    """Experiences of one class, classes smaller than their quota, a last batch of one, room for nothing."""
    for exemplars in (1000, 0):  # all one to who has no memory
        try:
            budget, recipe = Budget(exemplars=exemplars), replace(RECIPE, epochs=1)
            with subject.fresh(stream=subject.uneven(), budget=budget, recipe=recipe) as run:
                demand(run.record.status == "finished", f"the run is {run.record.status}")
                if not run.rebuilt(run.boundaries[-1]).memories():
                    return
        except CilError:
            raise
        except Exception as error:
            raise ContractError(
                f"fails on a stream with one class, few images or a last batch of one (budget.exemplars="
                f"{exemplars}): {type(error).__name__}: {error}"
            ) from error


RULES = (
    rules.state_survives_the_round_trip,
    rules.what_was_not_kept_cannot_help,
    only_the_state_crosses_a_boundary,
    metadata_is_charged,
    rules.the_ledger_is_the_checkpoint,
    carried.no_images_are_carried_beside_the_memories,
    carried.exemplars_decode_from_their_bytes,
    the_budget_is_never_exceeded,
    rules.same_seed_same_bits,
    rules.a_resumed_run_ends_where_the_straight_run_ends,
    predict_scores_each_class_seen,
    predict_has_no_side_effects,
    predict_does_not_look_at_the_rest_of_the_batch,
    the_live_learner_answers_as_the_rebuilt_one,
    *knowledge.RULES,
    rules.hooks_keep_to_themselves,
    uneven_streams_are_learned,
)
