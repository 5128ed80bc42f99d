"""Avalanche, both ways: streams as its benchmarks, its benchmarks as streams, its strategies under our ledger."""

from cil.interop.avalanche.benchmarks import avalanche_stream, from_avalanche, to_avalanche

__all__ = ["avalanche_stream", "from_avalanche", "to_avalanche"]
