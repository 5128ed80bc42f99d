"""Types of what stands in ``record.json``, as far as several kinds of run share it; the rest is in ``cil.kinds.NAME``.

Percent, bytes, seconds, floating point operations; what is undefined is None. A record may hold further keys. That of a
run which has not finished lacks results.
"""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

Scores = list[float | None]  # percent
Given = float  # a whole number as a user gave it, who may have written 1e6

# results ------------------------------------------------------------------------------------------------------------


class LedgerEntry(TypedDict):
    """One line of a ledger: a thing, or all alike of a thing that is kept."""

    name: str
    kind: str
    lifetime: str
    source: str
    bytes: int
    numel: int
    dtype: str
    sha256: NotRequired[str]


class LedgerTotals(TypedDict):
    """Bytes by kind and their ``total``: of what is carried, by convention of counting; of what is held in training."""

    exact: dict[str, int]
    survey: dict[str, int]
    libcontinual: NotRequired[dict[str, int]]
    training: dict[str, int]


class Beside(TypedDict):
    """Carried bytes beside networks and exemplars, and how many raw images of the stream they would hold."""

    bytes: int
    images: float


class BoundaryLedger(TypedDict):
    """Bytes at one boundary.

    ``public`` are those of public weights among the carried ones.
    """

    entries: list[LedgerEntry]
    totals: LedgerTotals
    public: int
    beside: NotRequired[Beside]


class ExperienceBill(TypedDict):
    """What will be carried after an experience, known before training (``cil.engine.dry_run.Bill``)."""

    experience: int
    fixed: dict[str, int]
    exemplars: int
    total: dict[str, int]
    by_kind: dict[str, int]
    beside: NotRequired[int]
    free_beside: NotRequired[int]
    side_limit: NotRequired[int | None]
    networks: NotRequired[int | None]
    public: NotRequired[int]


class FittedKey(TypedDict):
    """The hyperparameter that ``budget.fit`` has set, without ``strategy.``; bytes after the last experience."""

    key: str
    value: int
    bytes: int
    limit: int
    convention: str


class Plan(TypedDict):
    """Results that are known before the first experience; ``training_bill`` under a budget of training memory.

    ``warnings`` are the sentences that a person heard then.
    """

    bills: list[ExperienceBill]
    warnings: NotRequired[list[str]]
    fitted: NotRequired[FittedKey]
    training_bill: NotRequired[dict[str, int]]


class StrategySeconds(TypedDict):
    """Seconds of each experience, and of all."""

    train: list[float]
    consolidate: list[float]
    evaluate: list[float]
    total: float


class Spent(TypedDict):
    """What an experience had of operations or updates, and what it took."""

    available: float
    spent: int


class CapResult(TypedDict):
    """A further budget, and what was measured at each boundary."""

    limit: float
    unit: str
    measured: list[float]


class Caps(TypedDict):
    """Further budgets by name, where there are any."""

    caps: NotRequired[dict[str, CapResult]]


class LooksAt(TypedDict):
    """How often the images of an experience were read for training; of each reader the mean (``cil.data.looks``)."""

    images: int
    mean: float
    most: int
    by_reader: dict[str, float]


class Spending(TypedDict):
    """What a strategy carried and spent, one entry an experience.

    ``flops`` are sums up to each experience, by part; ``total`` is one number. ``over_budget`` says in words by how
    much. ``losses`` are means of the last epoch, of the phase where it was largest; null without training. ``compute``
    is there under a budget of it, ``own_updates`` where the learner took steps of optimizers by itself.
    ``reused_seconds`` are those of ``seconds`` that another run took, for a phase that was taken over from it.
    ``own_images`` is there where a phase was trained on images that are neither new nor exemplars: most of a phase.
    """

    losses: NotRequired[list[float | None]]
    ledger: list[BoundaryLedger]
    exemplars: list[int]
    given_up: list[int]
    over_budget: list[str | None]
    flops: dict[str, list[int] | int]
    seconds: StrategySeconds
    peak_training_bytes: int
    peak_parameters: int | None
    compute: NotRequired[list[dict[str, Spent] | None]]
    own_updates: NotRequired[list[int]]
    own_images: NotRequired[list[int]]
    looks: NotRequired[list[LooksAt]]
    reused_seconds: NotRequired[list[float]]


class Accuracy(TypedDict):
    """Accuracy over experiences; row i of a matrix holds all experiences after experience i."""

    accuracy_matrix: list[Scores]
    accuracy_matrix_task_aware: list[Scores]
    accuracy_curve: Scores
    average_incremental_accuracy: float | None
    last_accuracy: float | None
    average_accuracy: float | None
    forgetting: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    class_counts: list[int | None]


class StabilityGap(TypedDict):
    """How an earlier experience fell and came back while a later one was learned; see ``cil.metrics``."""

    earlier: int
    later: int
    gap: float | None
    recovery: float | None
    recovery_updates: float | None


class AnytimeResults(TypedDict):
    """Evaluation inside experiences; see ``cil.engine.anytime``."""

    every: Given
    unit: str
    images: Given | None
    updates: list[int]
    samples: list[int]
    experiences: list[int]
    accuracy: Scores
    accuracy_by_experience: list[Scores]
    a_auc: float | None
    online_accuracy: float | None
    average_anytime_accuracy: float | None
    min_accuracy: float | None
    worst_case_accuracy: float | None
    windowed_forgetting: dict[str, float | None]
    windowed_plasticity: dict[str, float | None]
    stability_gaps: list[StabilityGap]
    stability_gap: float | None
    flops: int


# identity and environment -------------------------------------------------------------------------------------------


class Environment(TypedDict, total=False):
    """Facts that do not make it another run."""

    started: str
    python: str
    torch: str
    platform: str
    processor: str
    cores: int | None
    command: str | None


class LogPlace(TypedDict):
    """Bytes of ``metrics.jsonl`` when the run had finished, their SHA-256, and that of the index of its arrays."""

    offset: int
    log: str
    arrays: NotRequired[str]


class StreamDescription(TypedDict):
    """What every stream says of itself."""

    name: str
    classes: list[str | int]
    image_shape: list[int]
    mean: list[float]
    std: list[float]
    fingerprint: str
    data: str


class ExperienceDescription(StreamDescription):
    """What a stream of experiences says of itself."""

    experiences: int
    class_order: list[int]
    new_slots: list[list[int]]
    train_counts: list[int]
    augment: dict[str, Any]
    task_known_at_test: bool


class BudgetDescription(TypedDict):
    """The terms of a budget (``cil.memory.Budget``), and how they came about."""

    kind: str
    exemplars: Given | None
    limits: list[Given] | None
    convention: str
    reserve: str
    scope: str
    enforce: str
    side_bytes: NotRequired[Given | str | None]
    training_bytes: Given | None
    flops: Given | None
    updates: Given | None
    at: str
    to: str | None
    to_model: NotRequired[str]
    caps: NotRequired[dict[str, float]]
    per_class: NotRequired[Given]


class Networks(TypedDict):
    """How networks are made."""

    name: str
    head: str
    weights: str | None
    mean: list[float] | None
    std: list[float] | None
    channels_last: NotRequired[bool]
    options: NotRequired[dict[str, Any] | None]
    weights_sha256: NotRequired[str]


class Tuning(TypedDict):
    """How the settings were chosen, where ``cil tune`` chose them."""

    protocol: str
    n_trials: Given
    selection_metric: str
    search_space: dict[str, Any]
    search_space_hash: str


class Identity(TypedDict):
    """What every kind of run says that makes it this run; beside it ``kind`` and what is learned."""

    config: dict[str, Any]
    seed: int
    device: str
    precision: str
    threads: NotRequired[int | None]
    devices: NotRequired[int]
    versions: NotRequired[dict[str, str]]
    code: NotRequired[str | None]
    config_hash: NotRequired[str]
    role: NotRequired[str]
    scale: NotRequired[str]


class StrategyIdentity(Identity):
    """The identity of a run that trains a strategy."""

    strategy: str
    budget: BudgetDescription
    bound: bool
    uses_horizon: bool
    transductive: NotRequired[bool]
    uses_validation: NotRequired[bool]
    class_order: list[int]
    networks: Networks
    starts_from: NotRequired[str]
    features: NotRequired[str]
    pictures: NotRequired[bool]
    ignored: NotRequired[dict[str, str]]
    tuning: NotRequired[Tuning]
