"""Tasks: examples out of many kinds of sources, their labels, and which split each belongs to."""

from cil.data.tasks.examples import Access, ExampleTable, FileImages, Images, parts_of
from cil.data.tasks.file_sources import column_of, read_table
from cil.data.tasks.generators import GENERATORS
from cil.data.tasks.labels import LabelledExamples, buckets, label_examples
from cil.data.tasks.source_types import SOURCES, open_source, would_download
from cil.data.tasks.splits import PARTS, SPLITS, apportion, split_rows

__all__ = [
    "GENERATORS", "PARTS", "SOURCES", "SPLITS", "Access", "ExampleTable", "FileImages", "Images",
    "LabelledExamples", "apportion", "buckets", "column_of", "label_examples", "open_source", "parts_of",
    "read_table", "split_rows", "would_download",
]  # fmt: skip
