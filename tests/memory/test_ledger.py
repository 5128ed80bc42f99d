"""State and ledger: every byte in one line, under two conventions; nothing rides free."""

import json

import pytest
import torch

from cil.errors import ConfigError
from cil.memory import CONVENTIONS, KINDS, Entry, Ledger, Reference, State, check_kind, encode_meta, tensor_bytes
from cil.memory.ledger import tensor_entry

TENSORS = {
    "net.weight": torch.zeros(4, 5),  # 80 bytes
    "net.mean": torch.zeros(3, dtype=torch.float64),  # 24
    "memory.images": torch.zeros(2, 3, 2, 2, dtype=torch.uint8),  # 24
    "memory.slots": torch.zeros(2, dtype=torch.uint16),  # 4
    "fisher": torch.zeros(7, dtype=torch.bfloat16),  # 14
}
NAMED = {
    "net.weight": "parameters",
    "net.mean": "buffers",
    "memory.images": "exemplars",
    "memory.slots": "labels",
    "fisher": "statistics",
}
META = {"lambda": 0.5, "seen": [1, 2]}
WEIGHTS = Reference("vit", "0" * 64, 1_000, 250)
STATE = State(TENSORS, NAMED, META, (WEIGHTS,), {"parameters": 76, "exemplars": 24, "labels": 0})
META_BYTES = len('{"lambda":0.5,"seen":[1,2]}')
TRAINING = [Entry("main.optimizer", "optimizer", "training", "tensor", 80, 20, "float32")]


def test_the_total_is_tensors_and_encoded_metadata_and_references():
    ledger = Ledger.of(STATE)
    assert META_BYTES == 27
    assert ledger.total() == STATE.bytes == 80 + 24 + 24 + 4 + 14 + 27 + 1_000
    assert ledger.total() == sum(entry.bytes for entry in ledger.entries)
    assert ledger.public_bytes == 1_000


def test_metadata_are_charged_as_encoded_and_cost_nothing_where_there_are_none():
    assert STATE.encoded_meta() == b'{"lambda":0.5,"seen":[1,2]}'
    assert json.loads(encode_meta({"name": "é"})) == {"name": "é"}
    assert encode_meta({}) == b""
    empty = State({}, {})
    assert empty.bytes == Ledger.of(empty).total() == 0
    assert Ledger.of(empty).entries == ()
    smuggled = State({}, {}, {"x": "a" * 1_000})
    assert Ledger.of(smuggled).total() == 1_000 + len('{"x":""}')


def test_every_kind_has_its_sum_in_the_order_of_the_kinds():
    assert Ledger.of(STATE).by_kind() == {
        "parameters": 1_080,
        "buffers": 24,
        "exemplars": 24,
        "labels": 4,
        "statistics": 14,
        "other": 27,
    }


def test_a_line_says_what_a_tensor_is():
    entry = tensor_entry("a", "labels", torch.zeros(3, 2, dtype=torch.uint16))
    assert entry == Entry("a", "labels", "carried", "tensor", 12, 6, "uint16")
    assert {e.source for e in Ledger.of(STATE).entries} == {"tensor", "meta", "reference"}


def test_a_view_is_charged_for_its_own_values():
    base = torch.zeros(100, 10)
    assert tensor_bytes(base[:2]) == 80
    assert tensor_bytes(base[:1].expand(50, 10)) == 2_000  # written out when saved


def test_the_survey_counts_what_the_parts_state_and_nothing_else():
    ledger = Ledger.of(STATE, TRAINING)
    assert ledger.by_kind("survey") == {"parameters": 76, "exemplars": 24}
    assert ledger.total("survey") == 100
    with pytest.raises(ConfigError, match=r"budget\.convention is 'full'"):
        ledger.total("full")


def test_training_memory_is_listed_apart_under_either_convention():
    ledger = Ledger.of(STATE, TRAINING)
    assert ledger.total() == STATE.bytes
    for convention in CONVENTIONS:
        assert ledger.by_kind(convention, lifetime="training") == {"optimizer": 80}
    assert ledger.peak_training_bytes == STATE.bytes + 80


def test_a_carried_optimizer_is_charged_like_anything_carried():
    state = State({"momentum": torch.zeros(5)}, {"momentum": "optimizer"})
    assert Ledger.of(state).by_kind() == {"optimizer": 20}


def test_a_description_lists_all_kinds_largest_first():
    assert Ledger.of(STATE, TRAINING).describe() == (
        "parameters 1,080, other 27, buffers 24, exemplars 24, statistics 14, labels 4"
    )
    assert Ledger.of(STATE).describe("survey") == "parameters 76, exemplars 24"
    assert Ledger([]).describe() == "nothing"


def test_the_record_gets_one_line_for_all_that_is_alike_of_a_kept_thing():
    branches = {f"net.branches.{number}.weight": torch.zeros(5) for number in range(100)}
    kinds = dict.fromkeys(branches, "parameters") | {"net.mean": "buffers", "memory.images": "exemplars"}
    held = branches | {"net.mean": torch.zeros(3), "memory.images": torch.zeros(2, 3, 2, 2, dtype=torch.uint8)}
    ledger = Ledger.of(State(held, kinds))
    content = ledger.to_json()
    found = {line["name"]: (line["kind"], line["bytes"], line["numel"]) for line in content["entries"]}
    assert found == {
        "net.*": ("parameters", 2000, 500),
        "net.mean": ("buffers", 12, 3),
        "memory.images": ("exemplars", 24, 24),
    }
    assert sum(line["bytes"] for line in content["entries"]) == ledger.total() == content["totals"]["exact"]["total"]
    assert len(ledger.entries) == 102


def test_the_record_gets_lines_and_the_totals_of_both_conventions():
    content = json.loads(json.dumps(Ledger.of(STATE, TRAINING).to_json()))
    assert len(content["entries"]) == len(TENSORS) + 3
    assert content["totals"]["exact"]["total"] == STATE.bytes
    assert content["totals"]["survey"] == {"parameters": 76, "exemplars": 24, "total": 100}
    assert content["totals"]["training"] == {"optimizer": 80, "total": 80}
    assert content["public"] == 1_000
    assert content["entries"][0] == {
        "name": "net.weight",
        "kind": "parameters",
        "lifetime": "carried",
        "source": "tensor",
        "bytes": 80,
        "numel": 20,
        "dtype": "float32",
    }


def test_a_kind_is_one_of_the_ledgers_or_refused_with_the_nearest():
    assert [check_kind(kind) for kind in KINDS] == list(KINDS)
    with pytest.raises(ConfigError, match="no kind 'parameter'; did you mean 'parameters'"):
        check_kind("parameter")


def test_what_is_charged_is_what_a_checkpoint_writes(tmp_path):
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "state.safetensors")
    content = (tmp_path / "state.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == Ledger.of(State(TENSORS, NAMED)).total()
