"""What is carried is counted on the frozen state, in every run: whatever a learner says of it."""

from __future__ import annotations

import base64
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from cil.api import plan
from cil.contract import freeze
from cil.data import ArrayStore, Samples
from cil.engine.learning import CODEC_IMAGES
from cil.engine.recipe import Recipe
from cil.errors import BudgetExceeded, ConfigError, ContractError, StateError
from cil.memory import Allowance, Budget, ExemplarMemory, Ledger, NextBoundary, State
from cil.memory.codecs import Raw
from cil.models import frozen_copy
from cil.strategies.registry import STRATEGIES, register
from cil.strategies.replay import Replay
from cil.testing.toy import EXEMPLARS, toy_run, toy_stream

BRIEF = Recipe(epochs=1, batch_size=100)
STREAM = toy_stream()
IMAGE = 3 * 12 * 12
MANY = 120  # images hidden by a cheat, in bytes more than a network weighs


def run(strategy, tmp_path, **given):
    return toy_run(strategy, STREAM, tmp_path / "run", recipe=BRIEF, **given).execute()


def all_images(experience: Any) -> Tensor:
    pixels = experience.train.pixels
    return pixels.repeat(-(-MANY // len(pixels)), 1, 1, 1)[:MANY]


# a learner that raises its budget -----------------------------------------------------------------------------------


class KeepsAll(Replay):
    """Stores every image."""

    def after_experience(self, experience: Any) -> None:
        self.memory.replace([self.memory.samples(), experience.train])


class OnTheAllowance(KeepsAll):
    def prepare(self, experience: Any) -> None:
        self.budget.exemplars = 10_000


class BehindTheAllowance(KeepsAll):
    def prepare(self, experience: Any) -> None:
        object.__setattr__(self.budget.budget, "exemplars", 10_000)


class BeforeTheRun(KeepsAll):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self.budget.budget, "exemplars", 10_000)


class AnotherAllowance(KeepsAll):
    def prepare(self, experience: Any) -> None:
        self.budget = Allowance(Budget(exemplars=10_000))


class AnAllowanceOfItsOwn(KeepsAll):
    @property
    def budget(self) -> Allowance:  # type: ignore[override]
        return Allowance(Budget(exemplars=10_000))

    @budget.setter
    def budget(self, given: Allowance) -> None:
        pass


class SaysItIsABound(KeepsAll):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bound = True


def test_a_budget_cannot_be_set_by_a_learner(tmp_path):
    with pytest.raises(ContractError, match=r"budget\.exemplars cannot be set by a learner"):
        run(OnTheAllowance, tmp_path)


RAISED = [KeepsAll, BehindTheAllowance, BeforeTheRun, AnotherAllowance, AnAllowanceOfItsOwn, SaysItIsABound]


@pytest.mark.parametrize("cheat", RAISED)
def test_a_learner_is_held_to_the_budget_of_the_user(cheat, tmp_path):
    with pytest.raises(BudgetExceeded, match=rf"carries 24 exemplars, budget\.exemplars is {EXEMPLARS}"):
        run(cheat, tmp_path)


def test_what_a_class_says_of_itself_is_read_once(tmp_path):
    class TellsTwoTales(type):
        @property
        def bound(cls) -> bool:
            cls.asked = getattr(cls, "asked", 0) + 1
            return cls.asked == 1

    class ForTheBudgetAlone(KeepsAll, metaclass=TellsTwoTales):
        pass

    class Bound(KeepsAll):
        bound = True

    def one_then_the_other(make_net: Any, budget: Any) -> Replay:
        kinds.append(KeepsAll)
        return kinds.pop(0)(make_net, budget)

    kinds: list[type[Replay]] = [Bound]
    for strategy in (ForTheBudgetAlone, one_then_the_other):
        made = plan(strategy, STREAM, "smallconv", Budget(exemplars=EXEMPLARS), recipe=BRIEF, run_dir=tmp_path)
        assert made.identity["bound"] is (made.work.budget.enforce == "report") is True


def test_limits_in_bytes_are_not_the_learners_to_change(tmp_path):
    class RaisesItsLimit(KeepsAll):
        def prepare(self, experience: Any) -> None:
            limits: Any = self.budget.limits
            limits[0] = 10**9

    with pytest.raises(TypeError, match="does not support item assignment"):
        run(RaisesItsLimit, tmp_path, budget=Budget(limits=[30_000]))


# exemplars told and held --------------------------------------------------------------------------------------------


class SaysFewer(ExemplarMemory):
    """Says that it holds ten exemplars at most, but to itself."""

    def __len__(self) -> int:
        return min(EXEMPLARS, len(self._slots)) if getattr(self, "told", True) else len(self._slots)

    def tensors(self, num_classes: int) -> dict[str, tuple[Tensor, str]]:
        self.told = False
        try:
            return super().tensors(num_classes)
        finally:
            self.told = True


class TellsFewer(Replay):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("memory", SaysFewer(), kind="exemplars")

    def after_experience(self, experience: Any) -> None:
        self.memory.told = False
        self.memory.replace([self.memory.samples(), experience.train])
        self.memory.told = True


class HidesItsMemory(KeepsAll):
    def memories(self) -> dict[str, ExemplarMemory]:
        return {}


class OneLabelForAll(ExemplarMemory):
    """Many images in the row of a label."""

    def tensors(self, num_classes: int) -> dict[str, tuple[Tensor, str]]:
        held = super().tensors(num_classes)
        return {**held, "slots": (held["slots"][0][:1], "labels")} if held else held


class LabelsAFew(KeepsAll):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("memory", OneLabelForAll(), kind="exemplars")


@pytest.mark.parametrize("cheat", [TellsFewer, HidesItsMemory])
def test_exemplars_are_rows_of_the_frozen_state(cheat, tmp_path):
    with pytest.raises(BudgetExceeded, match="carries 24 exemplars"):
        run(cheat, tmp_path)


def test_an_exemplar_is_one_row_of_everything(tmp_path):
    with pytest.raises(StateError, match="memory carries 24 images, 1 slots: an exemplar is one row of each"):
        run(LabelsAFew, tmp_path)


# images as something else -------------------------------------------------------------------------------------------


class AsExtras(Replay):
    """Thirty images beside each exemplar."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("memory", ExemplarMemory(extras={"more": "exemplars"}), kind="exemplars")

    def after_experience(self, experience: Any) -> None:
        few = experience.train[torch.arange(4)]
        more = {"more": all_images(experience).view(4, 30, *few.shape)}
        self.memory.replace([Samples(ArrayStore(few.pixels), few.slots, extras=more)])


class AsStatistics(Replay):
    kind = "statistics"
    dtype: torch.dtype = torch.uint8

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("more", torch.zeros(MANY, 3, 12, 12, dtype=self.dtype), kind=self.kind)

    def after_experience(self, experience: Any) -> None:
        self.more = all_images(experience).to(self.dtype)


class AsComplexPrototypes(AsStatistics):
    kind = "prototypes"
    dtype = torch.complex64


class AsParameters(AsStatistics):
    kind = "parameters"  # of no module, so no network


class AsABuffer(Replay):
    """In a buffer of the network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.net.register_buffer("more", torch.zeros(MANY, 3, 12, 12))


class AsManyNetworks(Replay):
    """As parameters of a module beyond what any growing network has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("more", nn.ParameterList([torch.zeros(MANY, 3, 12, 12)]), kind="parameters")


class AsText(Replay):
    """As text among the metadata."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("more", "")

    def after_experience(self, experience: Any) -> None:
        self.more = base64.b64encode(all_images(experience).numpy().tobytes()).decode()


class InTheRoomThatACodecSaves(Replay):
    """Pieces of further images beside exemplars that are stored small."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("memory", ExemplarMemory("downsample:2", extras={"more": "exemplars"}), kind="exemplars")

    def after_experience(self, experience: Any) -> None:
        few = experience.train[torch.arange(4)]
        more = {"more": all_images(experience).view(4, -1)[:, : IMAGE - 12]}
        self.memory.replace([Samples(ArrayStore(few.pixels), few.slots, extras=more)])


OTHER_KINDS = [AsExtras, AsStatistics, AsComplexPrototypes, AsParameters, AsABuffer, AsManyNetworks, AsText]


@pytest.mark.parametrize("cheat", OTHER_KINDS)
def test_images_as_something_else_are_over_budget_side_bytes(cheat, tmp_path):
    with pytest.raises(BudgetExceeded, match=r"beside .*budget\.side_bytes.*null: no cap.*its side_bytes\(\) say"):
        run(cheat, tmp_path)


def test_what_is_free_in_the_survey_is_capped_there_too(tmp_path):
    for number, convention in enumerate(("survey", "exact")):
        budget = Budget(limits=[40_000], convention=convention)
        over = r"beside networks and exemplars after" if convention == "survey" else r"\(exact\)"
        with pytest.raises(BudgetExceeded, match=over):
            run(AsStatistics, tmp_path / str(number), budget=budget)


class AsLabels(AsStatistics):
    kind = "labels"


class AsAFlatBuffer(Replay):
    """In a buffer of one dimension, as statistics of batch norm are, which count as network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.net.register_buffer("more", torch.zeros(9_000))


class BehindATeacher(Replay):
    """As labels that weigh no more than a teacher that is charged and not carried, and what is allowed beside."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("teacher", None, kind="teacher")
        self.keep("more", torch.zeros(40_000, dtype=torch.uint8), kind="labels")


class ChargesNothing(AsStatistics):
    """Says that nothing is charged."""

    def _libcontinual(self) -> dict[str, int]:
        return {}

    def _libcontinual_bytes(self, name: str, kept: Any) -> int:
        return 0


class CopiesALargerOne(Replay):
    """Says that its teacher is a copy of a small network."""

    teacher_copies: ClassVar = {"teacher": "small"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("small", nn.Linear(1, 1), kind="parameters")
        self.keep("teacher", None, kind="teacher")

    def before_experience(self, experience: Any) -> None:
        self.teacher = frozen_copy(self.net)


@pytest.mark.parametrize("cheat", [ChargesNothing, CopiesALargerOne])
def test_the_charge_of_libcontinual_is_not_a_learners_to_state(cheat, tmp_path):
    with pytest.raises(BudgetExceeded, match=r"bytes \(libcontinual\)"):
        run(cheat, tmp_path, budget=Budget(limits=[40_000], convention="libcontinual", side_bytes=None))


class TeacherAsTemporary(Replay):
    """Holds its teacher as what no convention charges, assigned or kept in a hook."""

    at_once = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("old", None, kind="temporary")

    def before_experience(self, experience: Any) -> None:
        if self.at_once:
            self.keep("older", frozen_copy(self.net), kind="parameters", lifetime="training")
        self.old = frozen_copy(self.net)


class TeacherKeptInAHook(TeacherAsTemporary):
    at_once = True


@pytest.mark.parametrize(("cheat", "name"), [(TeacherAsTemporary, "old"), (TeacherKeptInAHook, "older")])
def test_a_frozen_copy_of_a_network_is_a_teacher_whatever_it_is_kept_as(cheat, name, tmp_path):
    with pytest.raises(ContractError, match=rf"^{cheat.__name__}\.{name} is a frozen copy of net, kept as .* teacher"):
        run(cheat, tmp_path, budget=Budget(limits=[400_000], convention="libcontinual"))


@pytest.mark.parametrize("cheat", [AsABuffer, AsText, AsLabels, AsAFlatBuffer, BehindATeacher])
def test_what_libcontinual_leaves_free_is_capped_there(cheat, tmp_path):
    with pytest.raises(BudgetExceeded, match=r"beside networks and exemplars"):
        run(cheat, tmp_path, budget=Budget(limits=[400_000], convention="libcontinual"))


def test_what_libcontinual_charges_is_paid_and_not_capped_a_second_time(tmp_path):
    bytes_beside = {}
    for limit in (400_000, 40_000):
        budget = Budget(limits=[limit], convention="libcontinual")
        try:
            record = run(AsStatistics, tmp_path / str(limit), budget=budget)
        except BudgetExceeded as error:
            assert "(libcontinual)" in str(error) and limit == 40_000
        else:
            bytes_beside = {key: record.results["bills"][-1][key] for key in ("beside", "free_beside")}
    assert bytes_beside == {"beside": MANY * IMAGE, "free_beside": 0} or bytes_beside["free_beside"] < 5_000


def test_without_the_cap_side_bytes_are_reported_in_images(tmp_path):
    record = run(AsStatistics, tmp_path, budget=Budget(exemplars=EXEMPLARS, side_bytes=None))
    assert record.results["ledger"][-1]["beside"] == {"bytes": MANY * IMAGE, "images": MANY}
    assert record.results["bills"][-1]["beside"] == MANY * IMAGE  # known before training


def test_what_a_codec_saves_is_no_room_for_other_images(tmp_path):
    record = run(InTheRoomThatACodecSaves, tmp_path)
    ordinary = 24 + 1 + 16  # bytes beside an image: logits of six classes, a label, and 16 more
    held = record.results["ledger"][-1]["beside"]["bytes"]
    assert held == 4 * (1 + IMAGE - 12 - ordinary)


@pytest.mark.parametrize("declared", [-1, float("inf"), "much"])
def test_side_bytes_that_a_method_declares_are_a_number_of_bytes(declared, tmp_path):
    class Declares(AsStatistics):
        def side_bytes(self) -> int:
            return declared

    with pytest.raises(ContractError, match=r"Declares\.side_bytes gives .* a whole number from 0"):
        run(Declares, tmp_path)


def test_a_number_of_side_bytes_holds_as_it_is(tmp_path):
    with pytest.raises(BudgetExceeded, match=r"120 images' worth|51,840 bytes beside"):
        run(AsStatistics, tmp_path, budget=Budget(exemplars=EXEMPLARS, side_bytes=MANY * IMAGE - 1))
    run(AsStatistics, tmp_path / "fits", budget=Budget(exemplars=EXEMPLARS, side_bytes=MANY * IMAGE))


def test_the_size_of_an_image_is_the_streams(tmp_path):
    class LargeImages(AsExtras):
        def after_experience(self, experience: Any) -> None:
            super().after_experience(experience)
            object.__setattr__(self, "num_classes", 6)
            self.image_shape = (3, 1000, 1000)

    with pytest.raises(BudgetExceeded, match="beside networks and exemplars"):
        run(LargeImages, tmp_path)


# a state that is not plain ------------------------------------------------------------------------------------------


def test_a_state_is_plain_data_of_the_learners_structure(tmp_path):
    class FreeState(State):
        def encoded_meta(self) -> bytes:
            return b""

    class Free(Replay):
        def state(self) -> State:
            own = super().state()
            return FreeState(own.tensors, own.kinds, own.meta, own.references, own.survey)

    class More(Replay):
        def state(self) -> State:
            own = super().state()
            return State({**own.tensors, "more": torch.zeros(3)}, {**own.kinds, "more": "buffers"})

    class Lists(Replay):
        def _flatten(self, lifetime: str) -> Any:
            return super()._flatten(lifetime)

    for number, (cheat, says) in enumerate(
        [(Free, "gives a FreeState"), (More, "differs from what is kept in more"), (Lists, "_flatten is an override")]
    ):
        with pytest.raises(StateError, match=says):
            run(cheat, tmp_path / str(number))


def test_kinds_are_those_of_the_structure(tmp_path):
    class CallsThemParameters(AsStatistics):
        def state(self) -> State:
            own = super().state()
            return State(own.tensors, dict.fromkeys(own.kinds, "parameters"), own.meta, own.references, own.survey)

    record = run(CallsThemParameters, tmp_path, budget=Budget(exemplars=EXEMPLARS, side_bytes=None))
    assert record.results["ledger"][-1]["totals"]["exact"]["statistics"] == MANY * IMAGE


def test_a_frozen_state_stays_what_it_was():
    from cil.contract import Holder

    class Lists(Holder):
        def __init__(self) -> None:
            super().__init__()
            self.keep("numbers", [1, 2])
            self.keep("sums", torch.ones(3), kind="statistics")

    holder = Lists()
    frozen = freeze(holder, (1, 2, 2), 2)
    holder.numbers.append(3)
    assert frozen.state.meta == {"numbers": [1, 2]}
    assert frozen.beside.bytes == 12 + len(b'{"numbers":[1,2]}')
    assert frozen.ledger().total() == frozen.state.bytes == frozen.beside.bytes


# the cap ------------------------------------------------------------------------------------------------------------


def test_the_cap_is_one_importance_or_covariances_and_prototypes(tmp_path):
    record = run("finetune", tmp_path)
    network = record.results["ledger"][-1]["totals"]["exact"]["total"]
    assert record.results["bills"][-1]["side_limit"] == network + 6 * (8 * 32 + 16) + 4096


def test_the_message_names_what_was_allowed():
    from cil.memory.ledger import Beside

    allowance = Allowance(Budget(exemplars=5), NextBoundary(2, image_bytes=8, side_bytes=100))
    with pytest.raises(BudgetExceeded) as refused:
        allowance.check(Ledger([], beside=Beside(101, 12.62)), 0, "mine")
    assert str(refused.value) == (
        "mine carries 101 bytes beside networks and exemplars (13 images' worth), budget.side_bytes allows 100 after "
        "experience 2: nothing; raise budget.side_bytes (null: no cap), set budget.enforce=report, or, where it holds "
        "them by design, let its side_bytes() say how many"
    )


# what a run is called, and its codec -------------------------------------------------------------------------------


def test_a_subclass_has_its_own_name():
    from cil.api import name_of

    assert (name_of(Replay), name_of(KeepsAll)) == ("replay", "KeepsAll")
    assert Budget.aligned(KeepsAll, exemplars=3).description()["to"] == "KeepsAll"
    with pytest.raises(ConfigError, match=r"the strategy name 'replay' is taken by cil\.strategies\.replay"):
        register("replay")(KeepsAll)


@pytest.mark.parametrize("name", ["replay", "lwf"])
def test_a_name_of_a_built_in_method_is_no_other_ones(name, tmp_path):
    def of_the_name(make_net: Any, budget: Any) -> Replay:
        return KeepsAll(make_net, budget)

    of_the_name.__name__ = name
    given = {"stream": STREAM, "model": "smallconv", "run_dir": tmp_path}
    for method in (type("Own", (KeepsAll,), {"name": name}), type(name, (KeepsAll,), {}), of_the_name):
        with pytest.raises(ConfigError, match=rf"is called '{name}', which is the name of cil\.strategies\.{name}:"):
            plan(method, **given)
    assert plan(STRATEGIES.find(name), **given).identity["strategy"] == name


def test_a_built_in_name_is_taken_before_anybody_asked_for_it():
    """In a process of its own, where no method was imported yet."""
    code = (
        "from cil.strategies import Strategy\nfrom cil.strategies.registry import register, find\n"
        "try: register('wa')(type('Mine', (Strategy,), {}))\nexcept Exception as error: print(error)\n"
        "print(find('wa').__module__)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    refused, found = said.splitlines()
    assert refused == "the strategy name 'wa' is taken by cil.strategies.wa; choose another"
    assert found == "cil.strategies.wa"


def test_a_run_looks_at_what_a_codec_stored_in_use(tmp_path):
    """One that is honest, and bad, where it is tried, as it tells a trial by the number of images."""
    known = torch.cat([STREAM[index].train.pixels for index in range(len(STREAM))])

    class WhenUnwatched(Raw):
        lossless = False

        def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
            return 1, 1, 1

        def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            rows = torch.cdist(pixels.flatten(1).float(), known.flatten(1).float()).argmin(1).byte()
            return rows, torch.ones(len(pixels), dtype=torch.int32)

        def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
            if len(sizes) == CODEC_IMAGES:
                return data.view(-1, 1, 1, 1).repeat(1, *shape)
            return known[data.long()]

    class Keeps(Replay):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.keep("memory", ExemplarMemory(WhenUnwatched(), "random"), kind="exemplars")

    with pytest.raises(ContractError, match=r"codec WhenUnwatched stores .* a mean error of 0.0 grey levels and m"):
        toy_run(Keeps, STREAM, tmp_path).execute()


def test_a_run_refuses_a_codec_that_knows_its_images(tmp_path):
    class Rows(Raw):
        def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
            return 1, 1, 1

        def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            known = STREAM[0].train.pixels
            rows = torch.cdist(pixels.flatten(1).float(), known.flatten(1).float()).argmin(1).byte()
            return rows, torch.ones(len(pixels), dtype=torch.int32)

        def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
            return STREAM[0].train.pixels[data.long()]

    class RowNumbers(Replay):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.keep("memory", ExemplarMemory(Rows(), "random"), kind="exemplars")

    class SaysItIsOurs(Rows):
        __module__ = "cil.memory.codecs"

    class Late(Replay):
        def after_experience(self, experience: Any) -> None:
            self.memory.codec = Rows()

    class OnTheObject(Replay):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            other, codec = Rows(), Raw()
            codec.encode, codec.decode = other.encode, other.decode
            self.keep("memory", ExemplarMemory(codec, "random"), kind="exemplars")

    for number, cheat in enumerate((RowNumbers, Late, OnTheObject)):
        with pytest.raises(ContractError, match="it knows these images"):
            run(cheat, tmp_path / str(number))
    Rows = SaysItIsOurs
    with pytest.raises(ContractError, match="it knows these images"):
        run(RowNumbers, tmp_path / "ours")
