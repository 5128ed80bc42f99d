"""Logs of PyCIL and PILOT as foreign records: what is read, what is refused, and how reports show it."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest

from cil.cli.main import main
from cil.errors import ConfigError
from cil.interop.pycil import read_log, read_logs, write_record
from cil.report import table, to_csv, to_json, to_text, write_html
from cil.tracking import Record, RecordError

STAMP = "2024-05-01 10:00:00,123"


def line(message: str, code: str = "trainer.py") -> str:
    return f"{STAMP} [{code}] => {message}\n"


def settings(network: str = "convnet_type: resnet32", **changes) -> str:
    """The settings of a run on four classes in two experiences, and the order of the classes."""
    found = {"config": "./exps/icarl.json", "dataset": "toy", "init_cls": 2, "increment": 2, "model_name": "icarl"}
    found |= {"seed": 1993, "memory_size": 20, "device": "[device(type='cuda', index=0)]"} | changes
    name, _, value = network.partition(": ")
    lines = [line(f"{key}: {value}") for key, value in {**found, name: value}.items()]
    return "".join([*lines, line("[2, 0, 3, 1]", "data_manager.py")])


def experience(step: int, top1: list[float], groups: str, *, top5: list[float] | None = None, nme: bool = True) -> str:
    """What is written after one experience; the nearest mean is one point better."""
    found = line(f"Learning on {2 * step}-{2 * step + 2}", "icarl.py")
    found += line("Task 0, Epoch 200/200 => Loss 0.016, Train_accy 99.80", "icarl.py") + line(
        "Exemplar size: 20", "icarl.py"
    )
    top5 = top5 or [100.0] * len(top1)
    if nme:
        better = [value + 1 for value in top1]
        found += line(f"CNN: {groups}") + line(f"NME: {groups}")
        found += line(f"CNN top1 curve: {top1}") + line(f"CNN top5 curve: {top5}")
        found += line(f"NME top1 curve: {better}") + line(f"NME top5 curve: {top5}") + "\n"
        return found + line(f"Average Accuracy (CNN): {sum(top1) / len(top1)}")
    found += line("No NME accuracy.") + line(f"CNN: {groups}")
    return found + line(f"CNN top1 curve: {top1}") + line(f"CNN top5 curve: {top5}") + "\n"


ONE = experience(0, [90.0], "{'total': 90.0, '00-01': 90.0, 'old': 0, 'new': 90.0}")
TWO = experience(1, [90.0, 70.0], "{'total': 70.0, '00-01': 60.0, '02-03': 80.0, 'old': 60.0, 'new': 80.0}")
WHOLE = settings() + ONE + TWO


@pytest.fixture
def log(tmp_path):
    def write(text: str, name: str = "reproduce_1993_resnet32.log"):
        path = tmp_path / "logs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_log_is_read_with_its_setting_curves_matrix_and_both_answers(log):
    (record,) = read_log(log(WHOLE))
    identity, results = record.identity, record.results
    assert (record.kind, record.status, record.error) == ("foreign", "finished", None)
    assert (identity["toolbox"], identity["strategy"], identity["seed"]) == ("pycil", "icarl", 1993)
    assert identity["stream"]["name"] == "toy_b0_inc2" and identity["stream"]["new_slots"] == [[0, 1], [2, 3]]
    assert identity["stream"]["class_order"] == [2, 0, 3, 1] and identity["config"]["memory_size"] == "20"
    assert identity["log"]["file"] == "reproduce_1993_resnet32.log" and identity["log"]["line"] == 1
    assert results["accuracy_curve"] == [90.0, 70.0] and results["average_incremental_accuracy"] == 80.0
    assert results["accuracy_matrix"] == [[90.0, None], [60.0, 80.0]] and results["forgetting"] == 30.0
    assert results["answers"]["nearest_mean"]["accuracy_curve"] == [91.0, 71.0]
    assert results["answers"]["head"]["top5_curve"] == [100.0, 100.0] and results["exemplars"] == [20, 20]


def test_numbers_of_numpy_2_and_of_pilot_are_read(log):
    numpy = WHOLE.replace("90.0", "np.float64(90.0)").replace("'old': 0", "'old': nan")
    assert read_log(log(numpy))[0].results == read_log(log(WHOLE))[0].results
    pilot = settings("backbone_type: vit_base_patch16_224", model_name="l2p", init_cls=1, increment=1, seed=1)
    pilot = pilot.replace("[2, 0, 3, 1]", "[1, 0]")
    pilot += experience(0, [90.0], "{'total': 90.0, '00-00': 90.0}", nme=False)
    (record,) = read_log(log(pilot + experience(1, [90.0, 75.0], "{'total': 75.0, '00-00': 75.0}", nme=False)))
    assert record.identity["toolbox"] == "pilot" and list(record.results["answers"]) == ["head"]
    assert record.results["forgetting"] is None and record.results["accuracy_matrix"] == []  # a group is missing


def test_line_ends_and_marks_of_windows_are_read(log):
    (record,) = read_log(log("\ufeff" + WHOLE.replace("\n", "\r\n")))
    assert record.results["accuracy_curve"] == [90.0, 70.0]


def test_lines_that_two_handlers_wrote_are_read_once(log):
    twice = "".join(2 * one for one in WHOLE.splitlines(keepends=True))
    assert read_log(log(twice))[0].results == read_log(log(WHOLE))[0].results


def test_a_group_without_images_is_unknown_and_not_read_twice(log):
    """A group of nan, in lines that two handlers wrote: equal lines are one line, and no forgetting is known."""
    text = WHOLE.replace("'00-01': 60.0", "'00-01': nan")
    for written in (text, "".join(2 * one for one in text.splitlines(keepends=True))):
        (record,) = read_log(log(written))
        assert record.results["accuracy_matrix"] == [] and record.results["forgetting"] is None
    (other,) = read_log(log(WHOLE.replace("'old': 0", "'old': nan").replace(ONE, 2 * ONE)))
    assert other.results["accuracy_matrix"] == [[90.0, None], [60.0, 80.0]]


def test_a_run_that_stopped_before_its_classes_are_known_is_not_finished(log):
    """As where the folder of a data set was not set; the run after it is read all the same."""
    start = settings().replace(line("[2, 0, 3, 1]", "data_manager.py"), "")
    (again,) = read_log(log(start + WHOLE.replace("seed: 1993", "seed: 7")))
    assert (again.identity["seed"], again.status) == (7, "finished")
    (alone,) = read_log(log(start))
    assert alone.status == "interrupted" and alone.error.endswith(":9: the log ends after the settings")


def test_groups_of_ten_classes_are_no_experiences(log):
    (record,) = read_log(log(WHOLE.replace("'00-01'", "'00-09'").replace("'02-03': 80.0, ", "")))
    assert record.results["accuracy_matrix"] == [] and record.results["forgetting"] is None
    assert record.results["last_accuracy"] == 70.0


def test_several_runs_in_one_file_are_told_apart_and_one_that_stopped_says_where(log):
    path = log(WHOLE + settings(seed=7) + ONE)
    first, second = read_log(path)
    assert (first.identity["seed"], second.identity["seed"]) == (1993, 7)
    stop = len((WHOLE + settings(seed=7) + ONE).splitlines())
    assert second.status == "interrupted" and second.error == f"{path}:{stop}: the log ends after 1 of 2 experiences"
    (cut,) = read_log(log(WHOLE[: WHOLE.index("curve: [90.0, 70.0]") + len("curve: [90.0, 7")], "cut.log"))
    assert cut.status == "interrupted" and cut.results["accuracy_curve"] == [90.0]
    (half,) = read_log(log(WHOLE[: WHOLE.index("NME top1 curve: [91.0, 71.0]")], "half.log"))
    lasts = [answer["last_accuracy"] for answer in half.results["answers"].values()]
    assert half.status == "interrupted" and lasts == [90.0, 91.0]  # both after the first experience


CURVE = "CNN top1 curve: [90.0, 70.0]"
DAMAGED = {
    "a curve that is no list": (WHOLE.replace(CURVE, "CNN top1 curve: [90.0, x]"), r"log:\d+: '\[90.0, x\]"),
    "a curve cut in the middle of the file": (WHOLE.replace(CURVE, "CNN top1 curve: [90.0, 7"), "is cut short"),
    "lines of two runs": (settings() + TWO, "do not go on from the 0"),
    "more than all": (WHOLE.replace("70.0]", "170.0]"), "outside 0 to 100"),
    "no seed": (WHOLE.replace("seed: 1993", "sead: 1993"), r"log:1: no 'seed'"),
    "an increment of none": (WHOLE.replace("increment: 2", "increment: x"), "'increment' .* is x"),
    "an increment that is a digit but no number": (
        WHOLE.replace("increment: 2", "increment: ²"),
        "'increment' .* is ²",
    ),
    "a class twice": (WHOLE.replace("[2, 0, 3, 1]", "[2, 0, 3, 3]"), r"log:10: .* is no order of classes"),
    "an order of lists": (WHOLE.replace("[2, 0, 3, 1]", "[[2], 0]"), "is no order of classes"),
    "no order": (WHOLE.replace("[2, 0, 3, 1]", "none"), "of 2 experiences, and 0 classes"),
    "more experiences than the classes make": (WHOLE.replace("[2, 0, 3, 1]", "[1, 0]"), "experiences, and 2 classes"),
    "a first experience of more than all classes": (WHOLE.replace("cls: 2", "cls: 100"), "init_cls=100"),
    "a curve without values": (settings() + line("CNN top1 curve: []"), r"'\[\]' is no list of numbers"),
    "a group that is a word": (WHOLE.replace("'total': 70.0", "'total': 'all'"), "holds what is no number"),
    "a group of more than all": (WHOLE.replace("'00-01': 60.0", "'00-01': 1e999"), "outside 0 to 100"),
    "neither toolbox": (WHOLE.replace("convnet_type", "net"), "none of convnet_type and backbone_type"),
    "another text": ("epoch 1 loss 3\n", "no log of PyCIL or PILOT"),
}


@pytest.mark.parametrize("text, told", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_log_is_named_with_its_line(log, text, told):
    with pytest.raises(RecordError, match=told) as error:
        read_log(log(text))
    assert "reproduce_1993_resnet32.log" in str(error.value)


def test_a_checkout_is_searched_and_a_bad_log_does_not_hide_the_good_ones(log, tmp_path):
    log(WHOLE)
    log("nothing\n", "bad.log")
    records, problems = read_logs(tmp_path)
    assert len(records) == 1 and len(problems) == 1 and "bad.log" in problems[0]
    with pytest.raises(ConfigError, match="does not exist"):
        read_logs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \*\.log"):
        read_logs(tmp_path / "empty")


def test_the_command_leaves_records_that_every_reader_takes(log, tmp_path, capsys):
    path, root = log(WHOLE + settings(seed=7) + ONE), tmp_path / "runs"
    assert main(["import", str(path), "--into", str(root)]) == 0
    assert "icarl of pycil on toy_b0_inc2, seed 1993: finished" in capsys.readouterr().out
    folders = sorted(root.glob("*/*"))
    assert [folder.parent.name for folder in folders] == ["toy_b0_inc2"] * 2
    again = write_record(read_log(path)[0], root)
    assert again.results == read_log(path)[0].results and len(list(root.glob("*/*"))) == 2
    assert Record.load(again.directory).frame().shape[0] == 2
    assert main(["show", str(again.directory)]) == 0 and main(["runs", "list", str(root)]) == 0
    assert "foreign" in capsys.readouterr().out
    odd = write_record(read_log(log(WHOLE.replace("dataset: toy", f"dataset: {'é' * 300}"), "odd.log"))[0], root)
    assert odd.directory.parent.name == "é" * 60 and odd.identity["stream"]["dataset"] == "é" * 300
    assert main(["evaluate", str(again.directory)]) == 2
    assert "is of the kind foreign; give the run of a strategy" in capsys.readouterr().err
    for all_of_it in ((), ("--all",)):
        assert main(["audit", str(again.directory), *all_of_it]) == 2
        assert "is foreign: pycil, which made it, alone can run it again" in capsys.readouterr().err
    for bibtex in ((), ("--bibtex",)):
        assert main(["cite", str(root), *bibtex]) == 0
        (cited,) = capsys.readouterr().out.splitlines()
        assert "icarl of pycil: foreign, read from a log" in cited and cited.startswith("% ") is bool(bibtex)
    assert main(["import", str(log("nothing\n", "bad.log")), str(path), "--into", str(root)]) == 1
    assert "bad.log is no log" in capsys.readouterr().err


def test_a_damaged_record_is_named_or_reads_as_it_was(log, tmp_path):
    record = write_record(read_log(log(WHOLE))[0], tmp_path / "runs")
    path = record.directory / "record.json"
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for number in range(180):
        place = chance.randrange(len(whole))
        damaged = bytearray(whole if number % 6 else whole[:place])
        if number % 6:
            damaged[place] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            found = Record.load(record.directory)
        except RecordError as error:
            refused += 1
            assert "record.json" in str(error)
        else:
            assert (found.status, found.identity, found.results) == (record.status, record.identity, record.results)
    assert refused > 170


def test_foreign_rows_stand_below_ours_and_are_never_ranked(log, run, tmp_path):
    foreign = read_log(log(WHOLE + settings(seed=7) + ONE))
    ours = [run(name, seed, matrix=((80.0 + seed, None), (low, low))) for name, low in (("icarl", 50.0), ("der", 40.0))
            for seed in (0, 1)]  # fmt: skip
    for record in ours:
        record.identity["stream"]["name"] = "toy_b0_inc2"
    content = table([*ours, *foreign])
    own, others = content.sections
    assert [line.name for line in own.grid.lines] == ["icarl", "der", "icarl [pycil]", "icarl, nearest mean [pycil]"]
    assert own.grid.lines[2].cells["Last %"] == "70.00" and own.grid.lines[2].marks == ("foreign",)
    assert all("pycil" not in (verdict.winner or "") and "pycil" not in verdict.text for verdict in own.verdicts)
    heading = own.grid.parts[-1][0]
    assert heading.startswith("foreign: read from logs, not billed") and heading.endswith("not ranked")
    rows = list(csv.DictReader(io.StringIO(to_csv(content))))
    assert [row["standing"] for row in rows if "pycil" in row["label"]] == ["foreign"] * 4
    assert all(row["exact_bytes"] == "" for row in rows if row["standing"] == "foreign")
    assert [row["label"] for row in json.loads(to_json(content))["sections"][0]["foreign"]] == [
        "icarl [pycil]", "icarl, nearest mean [pycil]",
    ]  # fmt: skip
    assert others.verdicts == () and others.best == {} and "1 of 2 seeds interrupted" in others.remarks[0]
    page = write_html([*ours, *foreign], tmp_path / "page.html").read_text()
    assert "icarl, nearest mean [pycil]" in page and "How to read foreign results" in page and "71.00" in page
    assert "icarl [pycil]" in to_text(table(foreign))  # alone too


def test_another_split_of_the_same_data_is_not_below_ours(log, run):
    ours = run("icarl", stream_changes={"name": "toy_b0_inc1", "new_slots": [[0], [1], [2], [3]]})
    content = table([ours, *read_log(log(WHOLE))])
    assert [line.name for line in content.sections[0].grid.lines] == ["icarl"]
