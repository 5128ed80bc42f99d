"""``cil tune``: choose hyperparameters by a protocol that never opens the test data, then report what they give."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.arguments import split_jobs_and_out
from cil.cli.compare import folder_of, jobs_of, plan_cell, print_errors, records_of, run_cells, write_report
from cil.cli.grid import Cell, expand
from cil.cli.job import Job
from cil.cli.names import key_of
from cil.errors import CilError, ConfigError, TrainingError

if TYPE_CHECKING:
    from cil.cli.pool import RunEnd
    from cil.cli.search_space import Range
    from cil.cli.tuning_protocols import TuningProtocol
    from cil.tracking import Record

HELP = """
usage: cil tune [key=value ...] [tune=FILE] [tune.protocol=...] [jobs=auto] [out=DIR]

Draws settings from tune.space, runs each on a stream that is judged on validation data and has no test data, takes the
best, and runs that and the defaults from scratch on the stream that is reported, for every seed given. The cost of all
trials stands in the record beside the result. The same command again goes on with what is not finished; more trials or
seeds are added to those that are there.

  cil tune stream=split_digits strategy=replay tune=lr_and_epochs seed=0,1,2
  cil tune strategy=icarl tune.trials=10 'tune.space={optimizer.lr:{log:[1e-3,1.0]},strategy.temperature:[1,2,4]}'
  cil tune stream=split_cifar100 strategy=wa tune=gtep_scratch tune.stream=half

  tune.protocol=two_phase  on tune.stream=half of the classes, the others are reported; on another stream,
                           tune.stream=NAME; or on other orders of the same classes, tune.stream=order
  tune.protocol=first_k    on the first tune.k experiences
  tune.protocol=none       the defaults alone
  tune.space               key: [a, b], {uniform: [low, high]}, {log: [low, high]}, {int: [...]} or {int_log: [...]}
  tune.trials, tune.sampler=random|tpe, tune.metric, tune.validation, tune.seed, tune.seeds: cil run --cfg job -p tune
  jobs=N, out=DIR          as in cil compare; trials are in out/trials, the report also in out/tune.json
"""
ROUND = {"random": sys.maxsize, "tpe": 4}  # trials asked for at a time, however many run side by side
CUT_SHORT = ("killed", "interrupted")  # trials that go on once, before anything is chosen without them
NOT_IN_FOLDER = ("seed", "tune.trials")  # further seeds and trials belong to what is there
QUANTILES = (0, 25, 50, 75, 100)
DRAWS = (1, 2, 3, 5, 10, 20, 50, 100)


@dataclass
class Trial:
    """One drawn setting; ``score`` in percent on validation data, None where it did not finish."""

    number: int
    seed: int
    values: dict[str, Any]
    score: float | None = None
    flops: int = 0
    error: str | None = None


@dataclass
class Setting:
    """One setting to be tuned.

    Attributes:
        cells: The runs to be reported before anything is tuned, one for each seed.
    """

    cells: list[Cell]
    job: Job
    protocol: TuningProtocol
    ranges: list[Range]
    stream_id: str | None
    disjoint: bool

    @property
    def tune(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.job.config["tune"]
        return found

    @property
    def label(self) -> str:
        more = {key: value for key, value in self.cells[0].varied.items() if key != "seed"}
        return Cell(self.job, more).label


@dataclass
class TuningReport:
    """A tuned setting: its trials, what the record says of the tuning, and the runs from scratch.

    Attributes:
        code: 1 where a run failed or was killed, else 0.
    """

    setting: Setting
    trials: list[Trial]
    tuning: dict[str, Any] | None
    records: list[Record]
    code: int


def main(arguments: Sequence[str]) -> int:
    overrides, asked_jobs, asked_out = split_jobs_and_out(arguments)
    if any(item.startswith("tune.space=") for item in overrides):
        overrides = ["tune.space=null", *overrides]  # in place of what a file says, where Hydra would merge the two
    from cil.tracking import write_json_atomic

    cells = expand(overrides)
    tune = cells[0].job.config["tune"]
    jobs = jobs_of(asked_jobs, cells[0].job, max(tune["trials"], len(cells)))
    environment.prepare(overrides, jobs)
    which = [item for item in overrides if key_of(item) not in NOT_IN_FOLDER]
    out = Path(asked_out if asked_out != "auto" else f"runs/tune-{folder_of(cells[0].job, which)}")
    settings = [_setting(alike) for alike in _by_setting(cells)]
    reports = [_tune(setting, jobs, out) for setting in settings]
    records = [record for report in reports for record in report.records]
    contents = [content(report) for report in reports]
    print("".join(f"{text(each)}\n\n" for each in contents), end="")
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(out / "tune.json", contents)
    if records:
        title = f"tune: {cells[0].job.choices.get('experiment') or cells[0].job.choices['stream']}"
        print(write_report(list({str(record.directory): record for record in records}.values()), out, title))
    return max(report.code for report in reports)


def _by_setting(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that differ in their seed alone are one setting."""
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(f"{k}={v}" for k, v in cell.varied.items() if k != "seed"), []).append(cell)
    return list(found.values())


def _setting(cells: list[Cell]) -> Setting:
    """Check whatever can be checked before anything is trained."""
    import torch

    from cil.cli.search_space import read_ranges
    from cil.cli.tuning_protocols import protocol_of, tuning_streams, with_overrides

    torch.set_num_threads(1)  # this process will fork
    job = cells[0].job
    protocol = protocol_of(job)
    if not protocol.trials:
        return Setting(cells, job, protocol, [], None, True)
    ranges = read_ranges(job.config["tune"]["space"])
    for each in ranges:
        for value in each.values:
            try:
                with_overrides(job, ["tune.space=null", each.override(value)])
            except CilError as error:
                raise ConfigError(f"tune.space: {error}") from error
    plan_cell(cells[0], 1, Path())
    return Setting(cells, job, protocol, ranges, *tuning_streams(job, protocol))


# search -------------------------------------------------------------------------------------------------------------


def _tune(setting: Setting, jobs: int, out: Path) -> TuningReport:
    trials = _search(setting, jobs, out / "trials") if setting.protocol.trials else []
    scored = [trial for trial in trials if trial.score is not None]
    if trials and not scored:
        raise TrainingError(f"{setting.label}: no trial of {len(trials)} finished; the first says: {trials[0].error}")
    chosen = max(scored, key=lambda trial: (trial.score, -trial.number), default=None)
    tuning = _tuning(setting, trials, chosen) if chosen else None
    ends = _run_reported(setting, chosen, tuning, jobs, out)
    return TuningReport(setting, trials, tuning, records_of(ends), print_errors(ends))


def _search(setting: Setting, jobs: int, out: Path) -> list[Trial]:
    """All trials, those that have finished before from their records."""
    from cil.cli.search_space import Study, seed_for

    tune = setting.tune
    study = Study(setting.ranges, tune["sampler"], tune["seed"])
    trials: list[Trial] = []
    while len(trials) < tune["trials"]:
        start, size = len(trials), min(ROUND[tune["sampler"]], tune["trials"] - len(trials))
        asked = [
            Trial(number, seed_for(tune["seed"], "seed", number) % tune["seeds"], study.ask())
            for number in range(start, start + size)
        ]
        _run_trials(setting, asked, jobs, out)
        for trial in asked:
            study.tell(trial.number, trial.score)
        trials += asked
    return trials


def _run_trials(setting: Setting, trials: Sequence[Trial], jobs: int, out: Path) -> None:
    """Run them, equal ones once, and read what came out."""
    from cil.cli.tuning_protocols import plan_trial, with_overrides
    from cil.tracking import Record
    from cil.tracking.files import RECORD

    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(f"{trial.values} {trial.seed}", []).append(trial)
    cells = []
    for first, *_ in groups.values():
        drawn = _overrides(setting, first)
        varied = {"trial": str(first.number)} | {item.partition("=")[0]: item.partition("=")[2] for item in drawn}
        cells.append(Cell(with_overrides(setting.job, [*setting.protocol.trials[first.seed], *drawn]), varied))
    run = partial(run_cells, jobs=jobs, out=out, plan=partial(plan_trial, setting.protocol.first))
    ends = run(cells)
    assert len(ends) == len(cells)  # what is drawn differs, so do the runs
    if cut := [number for number, end in enumerate(ends) if end.status in CUT_SHORT]:
        for number, end in zip(cut, run([cells[number] for number in cut]), strict=True):
            ends[number] = end
    for end in ends:
        if (end.run.run_dir / RECORD).exists():  # one that is there and cannot be read: nothing is chosen
            Record.load(end.run.run_dir)
    for end in ends:
        if end.bad:
            print(f"cil: {end.failure}; so it cannot be chosen", file=sys.stderr)
    for group, end in zip(groups.values(), ends, strict=True):
        _read(group, end, setting.tune["metric"])


def _read(group: Sequence[Trial], end: RunEnd, metric: str) -> None:
    record = next(iter(records_of([end])), None)
    results = record.results if record is not None else {}
    finished = record is not None and record.status == "finished"
    for trial in group:
        trial.score = results[metric] if finished else None
        trial.error = None if finished else end.error or end.status
    group[0].flops = (results.get("flops") or {}).get("total") or 0


def _tuning(setting: Setting, trials: Sequence[Trial], chosen: Trial) -> dict[str, Any]:
    from cil.cli.search_space import space_hash

    tune = setting.tune
    return {
        "protocol": tune["protocol"],
        "n_trials": len(trials),
        "tuning_stream_id": setting.stream_id,
        "search_space_hash": space_hash(setting.ranges),
        "selection_metric": tune["metric"],
        "tuning_cost": sum(trial.flops for trial in trials),
        "tuned_on": setting.protocol.words,
        "classes_disjoint": setting.disjoint,
        "sampler": tune["sampler"],
        "seed": tune["seed"],
        "search_space": {each.key: each.plain() for each in setting.ranges},
        "chosen": chosen.values,
        "chosen_trial": chosen.number,
        "unfinished_trials": sum(trial.score is None for trial in trials),
    }


def _run_reported(
    setting: Setting, chosen: Trial | None, tuning: Mapping[str, Any] | None, jobs: int, out: Path
) -> list[RunEnd]:
    """Run the chosen setting and the defaults, from scratch, for every seed; equal to what cil run would do."""
    from cil.cli.tuning_protocols import UNTUNED, plan_report, with_overrides

    settings: dict[str, list[str]] = {UNTUNED: []}
    if chosen is not None:
        settings[setting.tune["protocol"]] = _overrides(setting, chosen)
    cells = [
        Cell(with_overrides(cell.job, [*setting.protocol.report, *drawn]), {**cell.varied, "tuning": name})
        for name, drawn in settings.items()
        for cell in setting.cells
    ]
    return run_cells(cells, jobs, out, partial(plan_report, tuning))


def _overrides(setting: Setting, trial: Trial) -> list[str]:
    return [each.override(trial.values[each.key]) for each in setting.ranges]


# report -------------------------------------------------------------------------------------------------------------


def content(report: TuningReport) -> dict[str, Any]:
    """The report of a tuning, ready for JSON: protocol and cost, the spread of the trials, results on test data."""
    import numpy as np

    from cil.metrics import best_of
    from cil.report import RunSummary

    trials, tuning, records = report.trials, report.tuning, report.records
    scores = [trial.score for trial in trials if trial.score is not None]
    quartiles = np.percentile(scores, QUANTILES).tolist() if scores else []
    finished = [record for record in records if record.status == "finished"]
    tuned, untuned = ([r for r in finished if ("tuning" in r.identity) is wanted] for wanted in (True, False))
    runs = [flops for record in tuned if (flops := RunSummary(record).flops)]
    cost = tuning["tuning_cost"] if tuning else 0
    metrics = ("average_incremental_accuracy", "last_accuracy")
    return {
        "subject": report.setting.label,
        "stream": records[0].identity["stream"]["name"] if records else None,
        "tuning": tuning or {"protocol": "none", "n_trials": 0, "tuning_cost": 0},
        "cost_in_runs": cost * len(runs) / sum(runs) if runs else None,
        "scores": dict(zip(map(str, QUANTILES), quartiles, strict=True)) if scores else {},
        "best_of": {str(m): best_of(scores, m) for m in DRAWS if scores and m <= len(scores)},
        "held_out": {
            name: {metric: [record.results[metric] for record in group] for metric in metrics}
            for name, group in (("tuned", tuned), ("untuned", untuned))
        },
        "seeds": sorted({record.identity["seed"] for record in finished}),
        "trials": [asdict(trial) for trial in trials],
    }


def text(found: Mapping[str, Any]) -> str:
    """The same in a few lines."""
    tuning, scores = found["tuning"], found["scores"]
    if not found["trials"]:
        return f"{found['subject']} on {found['stream']}: not tuned"
    chosen = " ".join(f"{key}={value}" for key, value in tuning["chosen"].items())
    best = next(trial for trial in found["trials"] if trial["number"] == tuning["chosen_trial"])
    lost = tuning["unfinished_trials"]
    cost = f"{tuning['tuning_cost']:.2e} FLOPs in all trials"
    lines = [
        f"{found['subject']} on {found['stream']}: {tuning['protocol']}, {tuning['n_trials']} trials on "
        f"{tuning['tuned_on']}; {tuning['selection_metric']} on validation data, %",
        f"  chosen       {chosen}   (trial {best['number']}: {best['score']:.2f}{_equals(found, best['score'])})",
        f"  trials       {_spread(scores)}" + (f"   ({lost} of {tuning['n_trials']} did not finish)" if lost else ""),
        "  best of m    expected of so many drawn: "
        + "   ".join(f"{m}: {value:.2f}" for m, value in found["best_of"].items()),
        f"  cost         {cost}" + (f", {found['cost_in_runs']:.1f} times one run" if found["cost_in_runs"] else ""),
    ]
    for metric, name in (("average_incremental_accuracy", "Avg"), ("last_accuracy", "Last")):
        both = [f"{_mean(found['held_out'][who][metric])} {who}" for who in ("tuned", "untuned")]
        lines.append(f"  {f'test, {name}':<12} {', '.join(both)}   (seeds {' '.join(map(str, found['seeds']))})")
    return "\n".join(lines)


def _equals(found: Mapping[str, Any], score: float) -> str:
    many = sum(trial["score"] == score for trial in found["trials"])
    return f", the first of {many} equals" if many > 1 else ""


def _spread(scores: Mapping[str, float]) -> str:
    least, first, middle, third, most = (f"{value:.2f}" for value in scores.values())
    return f"min {least}   quartiles {first} {middle} {third}   max {most}"


def _mean(values: Sequence[float]) -> str:
    from statistics import fmean, stdev

    if not values:
        return "-"
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
