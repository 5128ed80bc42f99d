"""The set-up of a table in words: facts for its settings, and the paragraph that a paper prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cil.report.grouping import Group
from cil.report.labels import labels_of
from cil.report.runs import RunSummary, dig, in_effect
from cil.report.settings_list import known, values_of, versions_of
from cil.report.verdicts import few

SKIPPED = ("_target_", "_partial_")
OPTIMIZER_WORDS = {"lr": "learning rate", "weight_decay": "weight decay"}
FIRST = {"epochs": "epochs", "batch_size": "images a batch", "lr": "learning rate", "weight_decay": "weight decay"}


def training_facts(groups: Sequence[Group]) -> dict[str, str]:
    """How networks were made and trained; where rows differ, which has what."""
    words = {
        "network": network_words,
        "epochs": epochs_words,
        "batch size": batch_words,
        "single pass": pass_words,
        "looks": looks_words,
        "optimizer": optimizer_words,
        "schedule": schedule_words,
        "first experience": first_words,
        "clipping": lambda run: _number(_trainer(run).get("clip_norm"), "gradients scaled down to norm "),
        "augmentation": augmentation_words,
        "normalisation": normalisation_words,
        "resized": resized_words,
        "exemplars chosen by": lambda run: str(dig(run.config, "strategy", "selection") or ""),
    }
    return known({name: by_row(groups, say) for name, say in words.items()})


def by_row(groups: Sequence[Group], say: Callable[[RunSummary], str]) -> str:
    """What is said of all rows; where they differ, each with the rows that it holds for, those without left out."""
    found: dict[str, list[str]] = {}
    for group, name in zip(groups, labels_of(groups), strict=True):
        if text := say(group.first):
            found.setdefault(text, []).append(name)
    said = sum(map(len, found.values()))
    if len(found) < 2 and said in (0, len(groups)):
        return next(iter(found), "")
    return "; ".join(f"{text} ({few(names)})" for text, names in found.items())


def image_facts(groups: Sequence[Group]) -> dict[str, str]:
    """Images by what they are for: training in each experience, validation, test."""
    first = groups[0].first
    counts = [int(count) for count in first.stream.get("train_counts") or ()]
    each = f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else ""
    tested = [test_images(run) for group in groups for run in group.runs]
    return known(
        {
            "images": " × ".join(map(str, first.stream.get("image_shape") or ())),
            "training images": f"{sum(counts):,}{each}" if counts else "",
            "validation images": by_row(groups, validation_words),
            "test images": next((f"{count:,}" for count in tested if count), ""),
        }
    )


def test_images(run: RunSummary) -> int | None:
    """Test images of all classes; None until they were all met."""
    counts = run.result("class_counts") or ()
    return sum(counts) if counts and None not in counts else None


def validation_words(run: RunSummary) -> str:
    """What is held out of the training images; empty where the record does not say."""
    share = dig(run.config, "stream", "validation")
    if share is None:
        return ""
    return f"{share:.3g} of each class's training images, held out" if share else "none held out"


def network_words(run: RunSummary) -> str:
    """For example ``resnet14 (width 16), linear head, random weights``."""
    nets = run.identity.get("networks") or {}
    if not nets.get("name"):
        return ""
    options = ", ".join(f"{key} {value}" for key, value in (nets.get("options") or {}).items())
    weights = nets.get("weights")
    start = "random weights" if weights is None else f"weights {weights}"
    return f"{nets['name']}{f' ({options})' if options else ''}, {nets.get('head', 'linear')} head, {start}"


def epochs_words(run: RunSummary) -> str:
    """Epochs of a main phase, and the cap on its steps where there is one."""
    trainer = _trainer(run)
    steps = trainer.get("max_steps")
    return f"{_number(trainer.get('epochs'))}{f', at most {steps:,} steps a phase' if steps else ''}"


def batch_words(run: RunSummary) -> str:
    """Images a batch, and how many batches make a step."""
    trainer = _trainer(run)
    many = trainer.get("accumulate") or 1
    return f"{_number(trainer.get('batch_size'))}{f', {many} batches summed into a step' if many > 1 else ''}"


def pass_words(run: RunSummary) -> str:
    """How one pass over the stream goes; empty where epochs are shuffled."""
    steps, complexity = (_trainer(run).get(key) for key in ("updates_per_batch", "complexity"))
    if complexity:
        return f"in the order of the stream, batches that arrive during a step are missed (complexity {complexity})"
    return f"in the order of the stream, {steps} steps a batch" if steps else ""


def looks_words(run: RunSummary) -> str:
    """The cap on reads of each new image; empty without one."""
    looks = _trainer(run).get("looks")
    return "" if looks in (None, "free") else f"at most {looks} at each new image, hooks included"


def optimizer_words(run: RunSummary) -> str:
    """For example ``SGD, learning rate 0.1, momentum 0.9``; what is 0 or off is left out."""
    return _call(in_effect(run).get("optimizer") or _trainer(run).get("optimizer"), OPTIMIZER_WORDS)


def schedule_words(run: RunSummary) -> str:
    """For example ``multistep, milestones [80, 120], gamma 0.1``."""
    given = in_effect(run).get("scheduler") or _trainer(run).get("scheduler") or {}
    words = _call({key: value for key, value in given.items() if given.get("warmup") or "warmup" not in key}, {})
    return f"{words}, counted in steps" if words and _trainer(run).get("schedule_by") == "step" else words


def first_words(run: RunSummary) -> str:
    first = {key: value for key, value in (_trainer(run).get("first") or {}).items() if value is not None}
    return ", ".join(f"{FIRST.get(key, key)} {value}" for key, value in first.items())


def augmentation_words(run: RunSummary) -> str:
    """What is done to training images, by data set where that differs; empty where the record does not say."""
    given = run.stream.get("augment")
    if not (given and given.get("choices")):
        return "" if given is None else _augmentation(given)
    sets: dict[str, list[str]] = {}
    for name, place in sorted({*zip(run.stream.get("origins") or (), given["choice_of"], strict=False)}):
        sets.setdefault(_augmentation(given["choices"][place]), []).append(name)
    return "; ".join(f"{words} ({', '.join(names)})" for words, names in sets.items())


def _augmentation(given: Mapping[str, Any]) -> str:
    pad, bright = given.get("crop_padding"), given.get("brightness")
    area, size = given.get("crop_area"), given.get("crop_size")
    least = f" of at least {100 * area:.3g} % of the area" if area else ""
    parts = [
        f"random resized crop{least}{f' to {size} pixels' if size else ''}" if given.get("resized_crop") else "",
        f"random crop after padding by {pad} pixels" if pad else "",
        "horizontal flip" if given.get("flip") else "",
        f"brightness times U[{max(0.0, 1 - bright):.3g}, {1 + bright:.3g}]" if bright else "",
        str(given.get("policy") or ""),
        f"cutout of {given.get('cutout')} pixels" if given.get("cutout") else "",
    ]
    return ", ".join(filter(None, parts)) or "none"


def normalisation_words(run: RunSummary) -> str:
    """Mean and deviation by channel, of images in [0, 1]; or those that public weights bring (``preprocess``)."""
    nets = run.identity.get("networks") or {}
    mean, std = (", ".join(f"{value:.4g}" for value in nets.get(key) or ()) for key in ("mean", "std"))
    if mean and std:
        return f"mean {mean}, deviation {std}"
    if not nets.get("weights"):
        return ""
    unit_range = (nets.get("options") or {}).get("preprocess") == "unit_range"
    return "none, images stay in [0, 1]" if unit_range else "as the public weights expect"


def resized_words(run: RunSummary) -> str:
    """What a network of fixed input size brings images to; empty where they have that size."""
    nets, shape = run.identity.get("networks") or {}, run.stream.get("image_shape") or ()
    if str(nets.get("name")).startswith("clip:"):
        return "to the input of the image tower, bicubic"
    size = (nets.get("options") or {}).get("img_size")
    sides = [size, size] if isinstance(size, int) else list(size or ())
    return f"to {' × '.join(map(str, sides))}, bicubic" if sides and sides != list(shape)[1:] else ""


def input_words(run: RunSummary) -> str:
    """All that is done to images before a network sees them, in one line."""
    augmented, normalised, resized = augmentation_words(run), normalisation_words(run), resized_words(run)
    parts = [
        f"augmentation {augmented}" if augmented else "",
        f"normalisation {normalised}" if normalised else "",
        f"resized {resized}" if resized else "",
    ]
    return "; ".join(filter(None, parts))


def _trainer(run: RunSummary) -> Mapping[str, Any]:
    return in_effect(run).get("trainer") or {}


def _number(value: Any, before: str = "") -> str:
    return "" if value is None else f"{before}{value}"


def _call(given: Mapping[str, Any] | None, words: Mapping[str, str]) -> str:
    """The last name of a class or function, and its arguments without those that are off."""
    if not given:
        return ""
    name = str(given.get("_target_", "")).rpartition(".")[2]
    kept = {key: value for key, value in given.items() if key not in SKIPPED and value not in (None, False, 0)}
    return ", ".join([name, *(f"{words.get(key, key)} {value}" for key, value in kept.items())])


# the paragraph ------------------------------------------------------------------------------------------------------


def paragraph(data: str, groups: Sequence[Group], budget: str, trained: bool = True) -> str:
    """The set-up of a table as a paper prints it.

    Args:
        data: A sentence on the stream.
        budget: What they may carry, in words.
        trained: False where the runs are of a network that was trained before, and the recipe is not theirs.
    """
    facts, images = training_facts(groups) if trained else {}, image_facts(groups)
    runs = [run for group in groups for run in group.runs]
    sentences = [data, _image_sentence(images), *_training_sentences(facts)]
    if budget:
        sentences.append(f"Budget: {budget}.")
    seeds = sorted({run.seed for run in runs})
    several = f"seeds {few(list(map(str, seeds)))}, with the sample standard deviation"
    sentences.append(f"Numbers are of {several if len(seeds) > 1 else f'seed {seeds[0]} alone'}.")
    made = ", ".join(versions_of(runs))
    precision, device = (" and ".join(values_of(runs, key)) for key in ("precision", "device"))
    sentences.append(f"Computed in {precision} on {device}{f' with {made}' if made else ''}.")
    return " ".join(filter(None, sentences))


def _image_sentence(images: Mapping[str, str]) -> str:
    counts = [
        f"{images[key].partition(' (')[0]} {word}"
        for key, word in (("training images", "for training"), ("test images", "for testing"))
        if key in images
    ]
    shape = f" of {images['images']}" if "images" in images else ""
    held = images.get("validation images")
    return f"Images{shape}: {', '.join(counts)}{f'; validation: {held}' if held else ''}." if counts else ""


def _training_sentences(facts: Mapping[str, str]) -> Iterable[str]:
    said = {"network": "Network: {}.", "optimizer": "Optimizer: {}.", "schedule": "Schedule: {}."}
    yield from (form.format(facts[key]) for key, form in said.items() if key in facts)
    if "epochs" in facts and "batch size" in facts:
        yield f"Epochs of each experience: {facts['epochs']}; images a batch: {facts['batch size']}."
    more = {"single pass": "Single pass: {}.", "looks": "Looks: {}.",
            "first experience": "In the first experience: {}.", "clipping": "Clipping: {}.",
            "augmentation": "Augmentation of training images: {}.", "normalisation": "Normalisation of images: {}.",
            "resized": "The network resizes images {}.",
            "exemplars chosen by": "Exemplars are chosen by {}."}  # fmt: skip
    yield from (form.format(facts[key]) for key, form in more.items() if key in facts)
