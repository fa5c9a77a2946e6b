"""Tables: entry points of other packages add to them, and a bad one harms nobody who does not ask for it."""

from __future__ import annotations

from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest

from gfo.export import registry
from gfo.export.errors import InputError
from gfo.export.registry import Table


class Mine:
    """What another package adds."""


def installed(site: Path, distribution: str, **entries: str) -> list[EntryPoint]:
    """The entry points of an installed package."""
    facts = site / f"{distribution}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {where}" for name, where in entries.items())
    (facts / "entry_points.txt").write_text(f"[gfo.things]\n{lines}\n")
    return list(Distribution.at(facts).entry_points)


def table(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> Table[object]:
    monkeypatch.setattr(registry, "entry_points", lambda group: [one for one in entries if one.group == group])
    own = {"table": ".registry:Table", "error": ".errors:InputError"}
    return Table("--thing", "gfo.things", "gfo.export", own)


def test_an_entry_point_adds_a_class_after_the_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    things = table(monkeypatch, *installed(tmp_path, "extra", mine=f"{__name__}:Mine"))
    assert things.names == ("table", "error", "mine")
    assert things.own == ("table", "error")
    assert things["mine"] is Mine
    assert list(things.classes()) == [Table, InputError, Mine]
    assert things.broken() == {}


def test_a_name_of_the_project_is_not_taken_silently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    things = table(monkeypatch, *installed(tmp_path, "extra", table=f"{__name__}:Mine"))
    assert things.names == ("table", "error")
    with pytest.raises(InputError, match=r"--thing table: more than one package has that name \(gfo itself, extra\)"):
        things["table"]
    assert things.by_name() == {"error": InputError}
    assert list(things.broken()) == ["table"]


def test_two_packages_with_one_name_are_both_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = (installed(tmp_path, name, mine=f"{__name__}:Mine") for name in ("extra", "other"))
    things = table(monkeypatch, *first, *second)
    assert things.names == ("table", "error", "mine")
    with pytest.raises(InputError, match=r"--thing mine: more than one package has that name \(extra, other\)"):
        things["mine"]
    assert list(things.classes()) == [Table, InputError]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("no_such_module:Mine", ""),
        (f"{__name__}:Nothing", ""),
        (f"{__name__}:installed", ""),
        (f"{__name__}", ""),
        ("gfo_raises:Mine", "raise OSError('libdriver.so: not found')"),
        ("gfo_raises:Mine", "raise KeyError('a')"),
        ("gfo_raises:Mine", "assert False"),
        ("gfo_raises:Mine", "raise SystemExit(0)"),
    ],
)
def test_a_broken_entry_point_is_skipped_unless_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, text: str
) -> None:
    (tmp_path / "gfo_raises.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    things = table(monkeypatch, *installed(tmp_path, "extra", broken=where, mine=f"{__name__}:Mine"))
    assert list(things.classes()) == [Table, InputError, Mine]
    with pytest.raises(InputError, match=rf"--thing broken: cannot load its entry point {where} .*uninstall extra"):
        things["broken"]
    assert list(things.broken()) == ["broken"]
    assert "cannot load its entry point" in things.broken()["broken"]


def test_an_own_class_that_cannot_be_imported_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    with pytest.raises(ModuleNotFoundError):
        Table("--thing", "gfo.things", "gfo.export", {"mine": ".no_such_module:Mine"}).by_name()


def test_a_block_adds_a_class_under_a_new_name_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    things = table(monkeypatch, *installed(tmp_path, "extra", mine=f"{__name__}:Mine"))
    with things.added("other", f"{__name__}:Mine"):
        assert things["other"] is Mine
    assert "other" not in things.names
    for known in ("table", "mine"):
        with pytest.raises(ValueError, match=f"{known}: is in the table already"), things.added(known, "any:Thing"):
            pass
    assert things["mine"] is Mine
