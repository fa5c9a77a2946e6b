"""Sphinx directives that read the code.

`command-options` lists the options of a console script as its `--help` describes them, and `record-fields` the fields
of a record as its JSON schema describes them.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def command(words: list[str]) -> Any:
    """Return the click command of a console script, or of one of its subcommands, as `["gfo-bench", "train"]`."""
    import typer

    name, *subcommands = words
    scripts: dict[str, str] = tomllib.loads(_PYPROJECT.read_text())["project"]["scripts"]
    found: Any = typer.main.get_command(import_module(scripts[name].partition(":")[0]).app)
    for subcommand in subcommands:
        found = found.commands[subcommand]
    return found


def _described(parameter: Any) -> tuple[list[str], str]:
    """Return the spellings of an option or argument, and its help with the default."""
    if parameter.param_type_name == "argument":
        return [parameter.metavar or parameter.name.upper()], parameter.help or ""
    default = parameter.default
    shown = default is not None and not isinstance(default, bool) and default != "" and not callable(default)
    note = "Required." if parameter.required else f"Default: {default}." if shown else ""
    return [*parameter.opts, *parameter.secondary_opts], f"{parameter.help or ''} {note}".strip()


def _panels(found: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield the visible parameters of a command under the headings of `--help`, in order."""
    panels: dict[str, list[Any]] = {}
    for parameter in found.params:
        if not getattr(parameter, "hidden", False) and "--help" not in parameter.opts:
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(parameter)
    yield from panels.items()


class CommandOptions(SphinxDirective):
    """`command-options:: gfo-bench train`."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a definition list for each group of options."""
        found = command(self.arguments)
        made: list[nodes.Node] = []
        for title, parameters in _panels(found):
            entries = [_described(parameter) for parameter in parameters]
            made += [nodes.rubric(text=title), _listed(entries)]
        return made


def _listed(entries: list[tuple[list[str], str]]) -> nodes.definition_list:
    """Return a definition list: names as code, and a paragraph on them."""
    found = nodes.definition_list()
    for names, text in entries:
        term = nodes.term()
        for i, name in enumerate(names):
            term += [nodes.Text(", "), nodes.literal(text=name)] if i else [nodes.literal(text=name)]
        found += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", "", *_inline(text))))
    return found


def _inline(text: str) -> list[nodes.Node]:
    """Return a text with its `code` marked."""
    parts = text.split("`")
    return [nodes.literal(text=part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts)]


class RecordFields(SphinxDirective):
    """`record-fields:: summary`, the name of a file in docs/schemas."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a definition list of the fields, then one for each record inside."""
        path = Path(self.env.srcdir) / "schemas" / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        schema = json.loads(path.read_text(encoding="utf-8"))
        made: list[nodes.Node] = []
        for title, record in [("", schema), *schema.get("$defs", {}).items()]:
            if title:
                made.append(nodes.rubric(text=title))
            fields = record.get("properties", {}).items()
            entries = [([name], f"{_type(field)}. {field.get('description', '')}") for name, field in fields]
            made.append(_listed(entries))
        return made


def _type(field: dict[str, Any]) -> str:
    """Return the type of a field as text: `integer or null`, `list of Quarantined`."""
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "const" in field or "enum" in field:
        return " or ".join(json.dumps(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}" if field.get("items") else "list"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"map of names to {_type(field['additionalProperties'])}"
    return str(field.get("type", "any"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("command-options", CommandOptions)
    app.add_directive("record-fields", RecordFields)
    return {"parallel_read_safe": True}
