"""DomainNet: 345 classes in six domains, one after the other, by the lists of its authors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cil.data import Augment, Dataset, Samples, data_root
from cil.data.benchmarks import folder_in
from cil.data.file_store import FileStore
from cil.errors import DataError
from cil.streams.domains import DomainStream, chosen_domains, stream_of_domains
from cil.streams.options import DatasetOptions, SplitOptions, accepts
from cil.streams.registry import register_stream

ORDER = ("real", "quickdraw", "painting", "sketch", "infograph", "clipart")  # of the published numbers


@register_stream("domainnet")
@accepts(DatasetOptions, only=True)
def domainnet(
    path: str | Path = "domainnet", *, domains: Sequence[str] | None = None, size: int = 224, **options: Any
) -> DomainStream:
    """The domains of DomainNet, one experience each.

    Args:
        path: A folder, here or in the data root, with ``DOMAIN/CLASS/*`` and the lists ``DOMAIN_train.txt`` and
            ``DOMAIN_test.txt`` of its authors: a path below the folder and the number of its class in each line.
        domains: Names in this order; None: those of ``ORDER`` whose lists are there.
        size: Height and width in pixels.
        options: Fields of ``DatasetOptions``.

    Raises:
        DataError: where lists are missing or wrong; it says what goes where. StreamError: where domains differ in
            their classes.

    Source: Peng et al., ICCV 2019, arXiv:1812.01754; order of McDonnell et al. 2023 (RanPAC).
    """
    shared = SplitOptions(order="natural", **options)
    root = data_root(shared.root)
    where = folder_in(root, path)
    known = [name for name in ORDER if (where / f"{name}_train.txt").is_file()]
    if not known:
        raise DataError(
            f"DomainNet is not in {where}; put there DOMAIN/CLASS/*, DOMAIN_train.txt and DOMAIN_test.txt of "
            f"{', '.join(ORDER)}, or set stream.path"
        )
    opened = {name: _domain(name, where, root, size) for name in chosen_domains(domains, known, where)}
    return stream_of_domains("domainnet", opened, shared, where)


def _domain(name: str, where: Path, root: Path, size: int) -> Dataset:
    splits, names = {}, {}
    for split in ("train", "test"):
        file, paths, labels = where / f"{name}_{split}.txt", [], []
        if not file.is_file():
            raise DataError(f"{file} is missing; put the list of its authors there")
        for line, text in enumerate(file.read_text().splitlines(), start=1):
            image, _, label = text.rpartition(" ")
            if not image or not label.isdigit():
                raise DataError(f"{file} line {line} is '{text}'; it must be a path and the number of its class")
            names[int(label)] = Path(image).parent.name
            paths.append(str(where / image))
            labels.append(int(label))
        store = FileStore(paths, size, digests=root / "cache" / "digests")
        splits[split] = Samples(store, torch.tensor(labels, dtype=torch.int64))
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{where}: the classes of {name} are not numbered from 0 on without a gap")
    classes = [names[label] for label in range(len(names))]
    augment = Augment(flip=True, resized_crop=True)
    return Dataset(name, splits["train"], splits["test"], classes, augment=augment, source=str(where))
