"""Exemplars on the page: read from the last state of a run, and only from a file that is whole."""

from __future__ import annotations

import numpy as np
import pytest

from cil import Budget, class_incremental, train
from cil.kinds.classes.exemplar_strips import first_exemplars
from cil.report import write_html
from cil.report.runs import RunSummary
from cil.trained import load


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    stream = class_incremental("digits", increment=5, train_per_class=4, test_per_class=2)
    place = tmp_path_factory.mktemp("exemplars") / "run"
    return train("replay", stream, "smallconv", Budget(exemplars=20), epochs=1, seed=0, run_dir=place, progress=False)


def test_the_first_exemplar_of_each_class_is_the_one_that_is_carried(record, tmp_path):
    images = first_exemplars(RunSummary(record))
    state = load(record.directory).learner.state().tensors
    first = [int(np.flatnonzero(state["memory.slots"].numpy() == slot)[0]) for slot in range(10)]
    assert np.array_equal(images, state["memory.images"].numpy()[first].transpose(0, 2, 3, 1))
    text = write_html([record], tmp_path / "page.html").read_text()
    assert text.count('<img alt="exemplars of replay" src="data:image/png;base64,') == 1


def test_a_damaged_state_shows_none_and_is_named_and_the_page_is_made(record, tmp_path, caplog):
    (file,) = (record.directory / "checkpoint").glob("experience-*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert first_exemplars(RunSummary(record)) is None
    assert "exemplars of replay" not in write_html([record], tmp_path / "page.html").read_text()
    file.unlink()
    assert first_exemplars(RunSummary(record)) is None
    assert set(caplog.messages) == {f"without pictures of exemplars: {file} is missing or damaged"}
    last = file.with_name("experience-001.json")
    last.unlink()
    assert first_exemplars(RunSummary(record)) is None
    assert caplog.messages[-1] == f"without pictures of exemplars: {last} is missing or damaged"
