"""Names that come from outside, in each kind of output: in one line, and neither markup nor a formula."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from gfo.engine.names import csv_cell, latex_text, markdown_cell, terminal_cell, visible


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("a\nb\t", r"a\nb\t"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\udcff.png", r"\udcff.png"),
        ("gnp\u202e.exe\u2028", r"gnp\u202e.exe\u2028"),
        ("$\\frac{$ é 猫 👩\u200d💻 a\u00a0b", "$\\frac{$ é 猫 👩\u200d💻 a\u00a0b"),
    ],
)
def test_what_cannot_be_seen_is_an_escape(name: str, seen: str) -> None:
    assert visible(name) == seen


@pytest.mark.parametrize("name", ["=1+1", "+1", "-x.pth", "@SUM(A1)", "＝1"])
def test_csv_cells_are_no_formulas(name: str) -> None:
    assert csv_cell(name) == f"'{name}"
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(name), csv_cell("\r" + name), csv_cell("a=b")])
    assert next(csv.reader(io.StringIO(file.getvalue()))) == [f"'{name}", rf"\r{name}", "a=b"]


def test_markdown_cells_hold_no_markup() -> None:
    name = "|<script>a&b</script> [x](y) *_`$~\\\n"
    assert markdown_cell(name) == r"\|&lt;script&gt;a&amp;b&lt;/script&gt; \[x\](y) \*\_\`\$\~\\\\n"


def test_latex_has_letters_that_pdflatex_knows() -> None:
    assert latex_text("é 猫👩 ε\n") == r"é U+732B U+1F469  ε\n"


def test_terminal_cells_are_as_they_are_but_not_endless() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal_cell("[red]gfo[onnx][/x]\x1b[2J"))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "[red]gfo[onnx][/x]\\x1b[2J\n"
    assert terminal_cell("x" * 5000).plain == "x" * 999 + "…"
