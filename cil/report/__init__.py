"""Report: records to tables, plots and one self-contained page. Reads what runs left, computes nothing anew."""

from cil.report.exports import to_csv, to_json, to_markdown
from cil.report.files import write_figures, write_lines
from cil.report.latex import to_latex
from cil.report.page import write_html
from cil.report.runs import RunSummary, find_runs
from cil.report.section import ReadingAid, Section, Sections
from cil.report.table import Table, table
from cil.report.text import to_text
from cil.report.verdicts import Score, Verdict, verdict

__all__ = [
    "ReadingAid", "RunSummary", "Score", "Section", "Sections", "Table", "Verdict", "find_runs", "table", "to_csv",
    "to_json", "to_latex", "to_markdown", "to_text", "verdict", "write_figures", "write_html", "write_lines",
]  # fmt: skip
