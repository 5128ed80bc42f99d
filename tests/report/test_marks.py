"""Marks that every kind of run has in every table: transductive, audited."""

from __future__ import annotations

from dataclasses import replace

from cil.report import table, to_csv, to_json, to_markdown, to_text, write_html
from cil.report.text import _numbers
from cil.tracking import identity_hash
from cil.tracking.audits import Audit, write_audit


def everywhere(records, path) -> list[str]:
    """The records in each format."""
    content = table(records)
    write_html(records, path)
    return [*(form(content) for form in (to_text, to_markdown, to_csv, to_json)), path.read_text()]


def test_a_transductive_row_says_so_in_every_format(run, tmp_path):
    records = [run(), run("wa", transductive=True)]
    for text in everywhere(records, tmp_path / "page.html"):
        assert "transductive" in text


def test_input_that_is_not_that_of_the_public_weights_is_marked(run, tmp_path):
    other = run("wa")
    other.identity["networks"] = {**other.identity.get("networks", {}), "options": {"preprocess": "unit_range"}}
    rows = {row.label: [note.mark for note in row.notes] for row in table([run(), other]).sections[0].rows}
    assert "unit range" in rows["wa"] and "unit range" not in rows["icarl"]


def test_what_was_audited_stands_beside_the_row(run, tmp_path):
    records = [run(seed=0), run(seed=1), run("wa"), run("bic"), run("der")]
    audits = [
        Audit(identity_hash(record.identity), 1, ("state", "answers"), "equal") for record in (records[0], *records[2:])
    ]
    audits[1] = replace(audits[1], verdict="differs", key="state: net.head.weight, 3 of 20 numbers")
    audits[2] = replace(audits[2], verdict="differs", key="state: x", elsewhere={"versions": [1, 2]})
    for record, audit in zip((records[0], *records[2:]), audits, strict=True):
        write_audit(record.directory, audit)
    rows = {row.label: row for row in table(records).sections[0].rows}
    marks = {label: [note.mark for note in row.notes if "audit" in note.mark] for label, row in rows.items()}
    assert marks == {
        "icarl": ["audited 1/2"],
        "wa": ["audit differs"],
        "bic": ["audited elsewhere"],
        "der": ["audited"],
    }
    write_audit(records[4].directory, replace(audits[1], run=audits[3].run, device="cuda"))
    row = next(row for row in table(records).sections[0].rows if row.label == "der")
    assert [note.mark for note in row.notes if "audit" in note.mark] == ["audit unsure"]
    assert [label for label, row in rows.items() if row.standing == "unranked"] == ["wa"]
    for text in everywhere(records, tmp_path / "page.html"):
        assert "net.head.weight" in text and "experience 1 of seed 0 (other versions)" in text


def test_an_asterisk_in_a_column_leaves_the_numbers_below_one_another():
    text = _numbers("head", ["64.90 ± 5.94", "65.1 ± 17.78 *", "–"])
    assert text == ["           head", "64.90 ±  5.94  ", " 65.1 ± 17.78 *", "    –          "]
