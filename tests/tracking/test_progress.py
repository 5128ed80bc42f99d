"""Progress: bars on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

from cil.tracking.progress import ProgressLogger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _axes(experience: int, epoch: int, share: float) -> dict:
    return {"experience": experience, "experiences": 2, "phase": "main", "epoch": epoch, "epochs": 4, "share": share}


def test_without_a_terminal_there_is_a_line_at_boundaries_and_one_epoch_line_in_thirty_seconds():
    stream, clock = io.StringIO(), Clock()
    progress = ProgressLogger(stream, clock=clock)
    progress.start({}, Path(), "icarl", None)
    for epoch in range(4):
        clock.now += 20
        progress.log("step", {"loss": 1.0}, _axes(0, epoch, epoch / 4))
        progress.log("epoch", {"loss": 0.5}, _axes(0, epoch, (epoch + 1) / 4))
    progress.log("boundary", {"accuracy": 81.25, "carried_bytes": 7998016}, {"experience": 0, "experiences": 2})
    progress.finish("finished")
    assert stream.getvalue().splitlines() == [
        "icarl: started",
        "icarl: experience 1/2, phase main, epoch 2/4, loss 0.500, ETA 2m 00s",
        "icarl: experience 1/2, phase main, epoch 4/4, loss 0.500, ETA 1m 20s",
        "icarl: experience 1/2, loss 0.500, accuracy 81.25 %, carries 7,998,016 B, ETA 1m 20s",
        "icarl: finished after 1m 20s, loss 0.500, accuracy 81.25 %, carries 7,998,016 B",
    ]


def test_a_resumed_run_says_so_and_counts_only_its_own_part_for_the_time_left(tmp_path):
    stream, clock = io.StringIO(), Clock()
    progress = ProgressLogger(stream, clock=clock)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/now.json").touch()
    progress.start({}, tmp_path, "icarl", None)
    assert stream.getvalue() == "icarl: goes on from what was saved\n"
    progress.log("step", {}, _axes(1, 0, 0.0))  # half the stream was done before
    clock.now += 60
    progress.log("step", {}, _axes(1, 2, 0.5))
    progress.log("epoch", {}, _axes(1, 1, 0.5))  # a quarter took a minute: a quarter is left
    assert "ETA 1m 00s" in stream.getvalue()


def test_on_a_terminal_bars_show_loss_accuracy_and_bytes_and_leave_one_line():
    stream = Terminal()
    progress = ProgressLogger(stream)
    progress.start({"config": {"budget": {"flops": 1e9, "updates": None}}}, Path(), "icarl", None)
    values = {"accuracy": 80.0, "carried_bytes": 5000, "ended_early": 1}
    progress.log("boundary", values, {"experience": 0, "experiences": 2})
    progress.log("step", {"loss": 0.25}, _axes(1, 2, 0.6))
    progress.finish("interrupted")
    shown = stream.getvalue()
    for text in ("experience 2/2", "phase main", "epoch 3/4", "accuracy 80.00 %", "carries 5,000 B", "loss 0.250"):
        assert text in shown
    assert shown.count("icarl: experience 1/2, budget.flops ended training early") == 1
    last = shown.splitlines()[-1]
    assert last.endswith("icarl: interrupted after 0s, loss 0.250, accuracy 80.00 %, carries 5,000 B")
