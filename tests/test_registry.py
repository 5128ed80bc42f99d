"""Names of things: registered here or named in an entry point of another package, which is loaded when asked for."""

from importlib.metadata import EntryPoint

import pytest

from cil.errors import ConfigError
from cil.plugins import Registry


@pytest.fixture
def registry(monkeypatch):
    entry = EntryPoint("theirs", "collections:Counter", "cil.things")
    monkeypatch.setattr("cil.plugins.points", lambda group: [entry] if group == "cil.things" else [])
    return Registry("thing", "cil.things")


def test_names_are_known_before_anything_is_loaded(registry):
    registry.register("ours")(dict)
    assert registry.names() == ["ours", "theirs"]
    assert list(registry.registered) == ["ours"]


def test_an_entry_point_is_loaded_when_it_is_asked_for(registry):
    from collections import Counter

    assert registry.find("theirs") is Counter


def test_a_registered_name_is_never_replaced(registry):
    registry.register("theirs")(dict)
    assert registry.find("theirs") is dict
    with pytest.raises(ConfigError, match="the thing name 'theirs' is taken by builtins; choose another"):
        registry.register("theirs")(list)


def test_built_in_names_are_imported_when_they_are_asked_for():
    loaded = []

    def load(name):
        loaded.append(name)
        things.register(name)(dict)

    things = Registry("thing", "", lambda: ["lazy"], load)
    assert things.names() == ["lazy"] and not loaded
    assert things.find("lazy") is dict and loaded == ["lazy"]


def test_an_unknown_name_is_refused_with_the_nearest_and_the_key(registry):
    assert registry.get("their") is None
    with pytest.raises(ConfigError, match=r"no thing 'their'; did you mean 'theirs'.* \(key x\)"):
        registry.find("their", " (key x)")
