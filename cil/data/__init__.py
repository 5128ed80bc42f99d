"""Data: samples and batches, data sets by name, batched augmentation."""

from cil.data.augment import Augment
from cil.data.registry import Dataset, data_root, dataset_names, dataset_options, load_dataset, register_dataset
from cil.data.samples import ArrayStore, Batch, Samples, Store, concatenated, to_float

__all__ = [
    "ArrayStore", "Augment", "Batch", "Dataset", "Samples", "Store", "concatenated", "data_root",
    "dataset_names", "dataset_options", "load_dataset", "register_dataset", "to_float",
]  # fmt: skip
