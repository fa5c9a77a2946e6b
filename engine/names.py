"""Names that come from outside (of folders, files, models, classes), as each kind of output takes them.

A name can hold anything: control characters that steer a terminal, letters that change the direction of reading, bytes
that are no text, and whatever is markup or a formula where it is shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.text import Text

_LONGEST: Final = 1000
# Control characters, line separators, changes of direction, and halves of surrogate pairs, as in names that are not
# UTF-8.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = tuple("=+-@＝＋－＠")
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")
_LATEX = re.compile("[^\x20-\u017fε±–]")


def visible(text: str) -> str:
    r"""Return the text in one line, with what cannot be seen as escapes: a line break is `\n`."""
    return _UNSEEN.sub(lambda match: escaped(match[0]), text)


def escaped(text: str) -> str:
    r"""Return characters as Python writes them in ASCII: `\n`, `\xe9`, `\u732b`."""
    return text.encode("unicode_escape").decode()


def terminal_cell(text: str) -> Text:
    """Return a cell of a table in a terminal, where rich reads no markup in it; a very long text is cut."""
    from rich.text import Text

    text = visible(text)
    return Text(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def csv_cell(text: str) -> str:
    """Return a cell of text that no spreadsheet takes for a formula: an apostrophe comes first, where it would be."""
    text = visible(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown_cell(text: str) -> str:
    """Return a cell of a Markdown table that is shown as it is: no markup, no HTML, no further cell."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def latex_text(text: str) -> str:
    """Return text that pdfLaTeX has letters for once it is escaped; other characters are code points, as U+732B."""
    return _LATEX.sub(lambda match: f"U+{ord(match[0]):04X} ", visible(text)).rstrip()
