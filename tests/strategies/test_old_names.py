"""Names that changed still work for one release, and say what they are called now."""

from __future__ import annotations

import pytest
from small_runs import bare

import cil.adapt


@pytest.mark.parametrize(("old", "new"), [("notes", "warnings"), ("findings", "diagnostics"), ("desk", "context")])
def test_an_attribute_is_found_and_set_by_its_old_name(old, new):
    learner = bare("finetune")
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        assert getattr(learner, old) is getattr(learner, new)
    with pytest.warns(DeprecationWarning):
        setattr(learner, old, "set")
    assert getattr(learner, new) == "set"


def test_the_source_of_an_adapter_is_found_by_its_old_name():
    with pytest.warns(DeprecationWarning, match="SourceModel"):
        assert cil.adapt.Source is cil.adapt.SourceModel
