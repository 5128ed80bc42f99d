"""``cil run`` on several devices of this machine: it starts the other processes, and ends with them."""

from __future__ import annotations

from pathlib import Path

from cil.cli.main import main
from cil.engine.checkpoint import Checkpoints
from cil.tracking import Record

FRAGILE = """
import os, signal
from cil.strategies.finetune import Finetune

class Fragile(Finetune):
    def loss(self, batch):
        if self.old_classes and os.environ["RANK"] == "1" and not os.path.exists("mended"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch)
"""


def test_a_rank_that_dies_ends_the_run_in_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile.py").write_text(FRAGILE)
    command = ["run", "strategy=fragile:Fragile", "stream=split_digits", "model=smallconv", "device=cpu", "run_dir=run",
               "trainer.devices=2", "trainer.max_steps=1", "trainer.threads=1", "progress=false"]  # fmt: skip
    assert main(command) == 2
    assert capsys.readouterr().err == "cil: rank 1 was ended by SIGKILL; the same command goes on\n"
    assert Record.load("run").status == "failed" and Checkpoints(Path("run")).done() == 1
    assert main([item.replace("devices=2", "devices=1") for item in command]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    (tmp_path / "mended").touch()
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.count("finished") == 1 and not printed.err
    record = Record.load("run")
    assert record.status == "finished" and record.identity["devices"] == 2
    assert main(command) == 0 and "nothing was run" in capsys.readouterr().out
