"""Streams: data sets turned into sequences of experiences."""

from cil.streams.base import Experience, ExperienceData, Provenance, Signature, Stream, TaskKey, fingerprint_of
from cil.streams.blurry import IBlurry, SiBlurry, blurry
from cil.streams.class_choice import class_order
from cil.streams.class_incremental import class_incremental
from cil.streams.corrupted import DomainOrder, PixelOptions, corrupted, materialise
from cil.streams.domain_net import domainnet
from cil.streams.domains import DomainStream, domain_files, permuted_domains, rotated_domains
from cil.streams.manifest import TaskFilter
from cil.streams.options import DatasetOptions, ImageOptions, SplitOptions
from cil.streams.registry import register_stream, stream_builder, stream_names
from cil.streams.schedules import Gaussian, LongTailed, Repetition
from cil.streams.task_stream import TaskStream, task_stream

__all__ = [
    "DatasetOptions", "DomainOrder", "DomainStream", "Experience", "ExperienceData", "Gaussian", "IBlurry",
    "ImageOptions", "LongTailed", "PixelOptions", "Provenance", "Repetition", "SiBlurry", "Signature", "SplitOptions",
    "Stream", "TaskFilter", "TaskKey", "TaskStream", "blurry", "class_incremental", "class_order", "corrupted",
    "domain_files", "domainnet", "fingerprint_of", "materialise", "permuted_domains", "register_stream",
    "rotated_domains", "stream_builder", "stream_names", "task_stream",
]  # fmt: skip
