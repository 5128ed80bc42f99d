"""Tests of the engine do not wait for the disk: no test pulls the plug."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fsync`` returns at once."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
