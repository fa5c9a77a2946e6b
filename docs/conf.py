"""Sphinx configuration: `make docs` builds this folder to build/docs, with warnings as errors."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "gfo"
author = "the gfo authors"
copyright = "the gfo authors, Apache-2.0"  # noqa: A001 (Sphinx's name)
release = version = installed_version("gfo")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "gfo_directives",
]
smartquotes = False  # it makes a dash of the two hyphens of an option

html_theme = "furo"
html_title = "gfo"
html_show_sphinx = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them

nitpicky = True
# Types of other libraries (no inventory is fetched: the build needs no network), and gfo's own internal ones.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!gfo\.).*"),
    (r"py:.*", r"gfo\.(?!(engine|export)\.[A-Za-z]+$).*"),
]


_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def _code_to_rest(line: str) -> str:
    """Translate `code` as in Markdown to reStructuredText, and escape the rest."""
    made = ""
    for i, part in enumerate(_CODE.split(line)):  # text, code, text, …
        added = f"``{part}``" if i % 2 else re.sub(r"[\\|*]", r"\\\g<0>", part)
        glued = made and added and not made[-1].isspace() and not added[0].isspace()
        made += f"\\ {added}" if glued else added
    return made


def _prepare_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring for napoleon.

    Code is marked as in Markdown. The attributes of a frozen dataclass are the parameters that make it. The first line
    of an attribute is text, not `type: text`. A closing `Source: …` paragraph is no part of the section above it, which
    napoleon ends at two blank lines.
    """
    lines[:] = [_code_to_rest(line) for line in lines]
    for i in range(len(lines) - 2):
        if lines[i].endswith(":") and not lines[i + 1] and lines[i + 2].startswith("    "):
            lines[i] += ":"  # what follows is a block of code
    if what in ("attribute", "property"):
        lines.insert(0, "\\ ")
    if what == "class" and "Attributes" in lines and "Parameters" not in lines:
        at = lines.index("Attributes")
        lines[at : at + 2] = ["Parameters", "----------"]
    for i in range(len(lines) - 1, 0, -1):
        if lines[i].startswith(("Source:", "Sources:")) and not lines[i - 1]:
            lines.insert(i, "")


def _prepare_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Show the default of a field that has a factory as `...`, so that the signature is valid Python."""
    return signature and signature.replace("<factory>", "..."), returned


def setup(app: Sphinx) -> None:
    """Register what this configuration adds."""
    app.connect("autodoc-process-docstring", _prepare_docstring, priority=400)
    app.connect("autodoc-process-signature", _prepare_signature)
