"""Torch's compiler is put off until it is used."""

from __future__ import annotations

import sys

from cil.engine import compiler


def test_it_leaves_code_alone_and_is_imported_when_more_is_asked_of_it(monkeypatch):
    monkeypatch.setattr(compiler, "NAME", "colorsys")  # a small module in its place
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    compiler.put_off()
    import colorsys

    assert isinstance(colorsys, compiler.PutOff)
    assert colorsys.disable(len, recursive=True) is len and colorsys.graph_break() is None
    assert not hasattr(colorsys, "__file__") and sys.modules["colorsys"] is colorsys
    assert colorsys.rgb_to_hsv(1, 0, 0) == (0, 1, 1)
    assert not isinstance(sys.modules["colorsys"], compiler.PutOff) and sys.modules["colorsys"].__file__
    assert colorsys.hsv_to_rgb(0, 1, 1) == (1, 0, 0)  # who has the old one


def test_what_was_imported_already_stays(monkeypatch):
    import json

    monkeypatch.setattr(compiler, "NAME", "json")
    compiler.put_off()
    assert sys.modules["json"] is json
