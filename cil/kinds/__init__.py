"""Kinds of run: class streams, task streams, adaptation. A folder each; a package of others may bring one more."""
