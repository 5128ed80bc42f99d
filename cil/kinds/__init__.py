"""Kinds of run: class streams, task streams, adaptation. All that is one kind's own is in its folder."""
