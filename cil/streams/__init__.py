"""Streams: data sets turned into sequences of experiences."""

from cil.streams.base import Experience, Part, Signature, Stream, fingerprint_of
from cil.streams.class_incremental import class_incremental, class_order
from cil.streams.corrupted import corrupted, materialise
from cil.streams.registry import register_stream, stream_builder, stream_names

__all__ = [
    "Experience",
    "Part",
    "Signature",
    "Stream",
    "class_incremental",
    "class_order",
    "corrupted",
    "fingerprint_of",
    "materialise",
    "register_stream",
    "stream_builder",
    "stream_names",
]
