"""A table as LaTeX: booktabs, one ``table`` for each section, the set-up beside it as a comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cil.report.grids import NOTHING, Grid, Line
from cil.report.section import Section
from cil.report.table import Table

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "–": "--",
    "→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$",
}  # fmt: skip
HEAD = "% needs \\usepackage{booktabs}"


def to_latex(table: Table) -> str:
    """The main table of each section; the best of a column is bold where a verdict calls it."""
    blocks = [HEAD, *(_table(section, place) for place, section in enumerate(table.sections, 1))]
    return "\n\n".join(blocks) + "\n"


def _table(section: Section, place: int) -> str:
    grid = section.grid
    lines = [f"% {sentence}" for sentence in _sentences(section)]
    lines += [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(section.heading)}}}",
        rf"  \label{{tab:{place}}}",
    ]
    lines += [rf"  \begin{{tabular}}{{l{'r' * len(grid.heads)}}}", r"    \toprule"]
    lines += [f"    {_joined(map(escaped, [grid.first, *grid.heads]))}", r"    \midrule"]
    lines += [f"    {text}" for text in _rows(grid, section.best)]
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines)


def _sentences(section: Section) -> list[str]:
    verdicts = [verdict.text for verdict in section.verdicts]
    said = [section.setup, section.legend, *verdicts, *section.remarks, *section.warnings]
    return [" ".join(sentence.split()) for sentence in said if sentence]


def _rows(grid: Grid, best: Mapping[str, str]) -> Iterable[str]:
    for place, (heading, part) in enumerate(grid.parts):
        if place:
            yield r"\midrule"
        if heading:
            yield rf"\multicolumn{{{len(grid.heads) + 1}}}{{l}}{{\emph{{{escaped(heading)}}}}} \\"
        for line in part:
            yield _joined([escaped(line.name), *_cells(grid, line, {} if heading else best)])


def _cells(grid: Grid, line: Line, best: Mapping[str, str]) -> Iterable[str]:
    for head, cell in zip(grid.heads, grid.cells(line), strict=True):
        text = number(cell)
        yield rf"\textbf{{{text}}}" if best.get(head) == line.name else text


def _joined(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def number(cell: str) -> str:
    r"""A cell as LaTeX: deviations after a sign, powers of ten as such, thousands with thin gaps.

    >>> number("59.87 ± 0.41"), number("1.62e13"), number("1,310,936"), number("–")
    ('59.87 $\\pm$ 0.41', '$1.62 \\cdot 10^{13}$', '1\\,310\\,936', '--')
    """
    if cell == NOTHING:
        return "--"
    if found := re.fullmatch(r"(\d+\.\d+)e(-?\d+)", cell):
        return rf"${found[1]} \cdot 10^{{{found[2]}}}$"
    if re.fullmatch(r"\d{1,3}(,\d{3})+", cell):
        return cell.replace(",", r"\,")
    return escaped(cell)


def escaped(text: str) -> str:
    r"""Text whose letters LaTeX prints as they are.

    >>> escaped("er_ace: 5 %")
    'er\\_ace: 5 \\%'
    """
    return "".join(SPECIAL.get(letter, letter) for letter in text)
