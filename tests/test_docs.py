"""The documentation: every command line parses, what the guides show is run by `.ci/run`, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
BANNED = (
    *("in words", "held against", "holds against", "is told", "are told", "so many", "take it away", "takes it away"),
    *("the mend", "to mend", "says nothing more", "what is told", "no such bank"),
)


def load(name: str) -> ModuleType:
    """Import a module of the docs folder, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


BLOCKS = load("blocks")


def shown(paths: list[Path] = PAGES) -> Iterator[tuple[Any, list[str]]]:
    """Every command line of the shell blocks, with its block."""
    for path in paths:
        for block in BLOCKS.blocks(path):
            if block.language == "sh":
                yield from ((block, words) for words in block.commands())


def console_command(words: list[str]) -> tuple[str, Any, list[str]]:
    """The name and the parser of a command line, of its subcommand where it has one, and the rest of the words."""
    from gfo.bench.commands import bench, demo, doctor
    from gfo.engine.commands import evaluate, export, report, train

    modules = (train, evaluate, export, report, bench, demo, doctor)
    names = ("train", "eval", "export", "report", "bench", "demo", "doctor")
    import typer

    name, *rest = words
    parser: Any = typer.main.get_command(dict(zip((f"gfo-{n}" for n in names), modules, strict=True))[name].app)
    if rest and rest[0] in getattr(parser, "commands", {}):
        return f"{name} {rest[0]}", parser.commands[rest[0]], rest[1:]
    return name, parser, rest


def options(words: list[str]) -> set[tuple[str, str]]:
    """The options of a command line, as (command, option)."""
    name, _, rest = console_command(words)
    return {(name, word.partition("=")[0]) for word in rest if word.startswith("--")}


def test_every_command_line_parses() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = set()
    for block, words in shown():
        if words[0] == "make":
            assert set(words[1:]) <= targets, block.where
        elif words[0].startswith("gfo-"):
            name, parser, rest = console_command(words)
            try:
                parser.make_context(name, rest)
            except Exception as error:
                raise AssertionError(f"{block.where}: {shlex.join(words)}: {error}") from error
            seen.add(name)
        else:
            assert words[0] in ("source", "python", "pip"), block.where
    assert {"gfo-train", "gfo-eval", "gfo-export", "gfo-report", "gfo-bench", "gfo-doctor"} <= seen


def test_options_in_the_text_exist() -> None:
    for path in PAGES:
        if path.name == "CHANGELOG.md":  # also names options that are gone
            continue
        for inline in re.findall(r"(?<!`)`(gfo-[a-z]+ [^`]+)`(?!`)", path.read_text()):
            name, parser, rest = console_command(shlex.split(inline))
            known = {spelling for p in parser.params for spelling in (*p.opts, *p.secondary_opts)}
            wrong = [word for word in rest if word.startswith("--") and word not in (*known, "--help")]
            assert not wrong, f"{path.name}: {inline}: {name} has no {wrong}"


def test_guides_show_only_what_is_run() -> None:
    run = set[tuple[str, str]]()
    for block, words in shown():
        if block.runs and words[0].startswith("gfo-"):
            run |= options(words)
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        if line.startswith("gfo-"):
            run |= options(shlex.split(line))
    guides = [(block.where, options(words)) for block, words in shown(GUIDES) if words[0].startswith("gfo-")]
    assert [(where, shown - run) for where, shown in guides if shown - run] == []


def test_python_blocks_compile() -> None:
    for path in PAGES:
        for block in BLOCKS.blocks(path):
            if block.language == "python":
                compile(block.text, block.where, "exec")


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda path: path.name
)
def test_links_of_pages_outside_docs_lead_somewhere(path: Path) -> None:  # Sphinx checks the others
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 1000


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_plain_english(path: Path) -> None:
    text = " ".join(path.read_text().lower().split())
    assert [phrase for phrase in BANNED if phrase in text] == []


@pytest.mark.parametrize("line", ["gfo-train --epsilom 3", "gfo-bench --scaling 3x3", "gfo-bench scaling --point 3x3"])
def test_a_wrong_option_is_noticed(line: str) -> None:
    name, parser, rest = console_command(line.split())
    known = {spelling for p in parser.params if not p.hidden for spelling in p.opts}
    assert not {word for word in rest if word.startswith("--")} <= known, name


@pytest.mark.parametrize("floor", ["kernels", "export", "engine", "bench"])
def test_the_design_names_every_room(floor: str) -> None:
    text = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)/?`", text[text.index(f"**{floor}/**") :].split("\n\n**")[0]))
    rooms = {path.stem for path in (ROOT / floor).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert {room for room in rooms if not room.startswith("_")} <= named
