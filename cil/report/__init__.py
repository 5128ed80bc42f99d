"""Report: records to tables, plots and one self-contained page. Reads what runs left, computes nothing anew."""

from cil.report.areas import Area, Areas, Under
from cil.report.page import write_html
from cil.report.rows import Note, Row
from cil.report.runs import Outcome, find_runs
from cil.report.tables import Section, Table, table
from cil.report.verdicts import Score, Verdict, verdict

__all__ = [
    "Area",
    "Areas",
    "Note",
    "Outcome",
    "Row",
    "Score",
    "Section",
    "Table",
    "Under",
    "Verdict",
    "find_runs",
    "table",
    "verdict",
    "write_html",
]
