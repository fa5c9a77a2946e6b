"""Tables of what varies: engines, loaders, formats, model families, objectives, each a class in a file of its own.

A folder's table maps a name to `"module:Class"`; the module is imported when the class is asked for. Another package
adds to a table through Python entry points of the table's group, as `gfo.engines`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from .errors import InputError, in_short

T = TypeVar("T")


class Table(Generic[T]):
    """Classes by name, imported on use.

    Parameters
    ----------
    option
        The option that takes a name, as `--engine`; error messages begin with it.
    group
        Group of the entry points that add to the table, as `gfo.engines`.
    package
        Package to which the modules of `classes` are relative: the `__name__` of the folder that holds the table.
    classes
        `{"name": ".module:Class"}`, in the order in which help texts list them.
    """

    def __init__(self, option: str, group: str, package: str, classes: Mapping[str, str]) -> None:
        self.option = option
        self.group = group
        self._package = package
        self._classes = dict(classes)

    @cached_property
    def _added(self) -> dict[str, tuple[EntryPoint, ...]]:
        """Entry points of the group by name; more than one, or one of the project's own names, cannot be used."""
        found: dict[str, tuple[EntryPoint, ...]] = {}
        for entry in entry_points(group=self.group):
            found[entry.name] = (*found.get(entry.name, ()), entry)
        return found

    @property
    def own(self) -> tuple[str, ...]:
        """The project's own names."""
        return tuple(self._classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the project's own first."""
        return tuple(dict.fromkeys((*self._classes, *self._added)))

    def __getitem__(self, name: str) -> type[T]:
        """Import and return the class of that name.

        Raises
        ------
        InputError
            There is none, more than one package claims the name, or the package that adds it cannot be imported.
        """
        self.check(name)
        added = self._added.get(name, ())
        self._refuse_rivals(name, added)
        return self._load(added[0]) if added else self._load_own(name)

    def _refuse_rivals(self, name: str, added: tuple[EntryPoint, ...]) -> None:
        claims = [*(["gfo itself"] if name in self._classes else []), *map(_distribution, added)]
        if len(claims) > 1:
            raise InputError(
                f"{self.option} {name}: more than one package has that name ({', '.join(claims)}); "
                "uninstall all but one, or have its author rename the entry point"
            )

    def _load_own(self, name: str) -> type[T]:
        module, _, found = self._classes[name].partition(":")
        return getattr(import_module(module, self._package), found)

    def _load(self, entry: EntryPoint) -> type[T]:
        try:
            return _class(entry.load())
        except (Exception, SystemExit) as error:  # a module of another package raises any kind while it is imported
            raise InputError(
                f"{self.option} {entry.name}: cannot load its entry point {entry.value} ({in_short(error)}); "
                f"fix or uninstall {_distribution(entry)}"
            ) from error

    def by_name(self, names: Iterable[str] | None = None) -> dict[str, type[T]]:
        """Import and return every class that can be used, or those of `names`; `broken` says what is left out."""
        return {name: found for name, found in self._tried(names) if not isinstance(found, InputError)}

    def classes(self) -> Iterator[type[T]]:
        """Import and yield every class that can be used, in the order of `names`; `broken` says what is left out."""
        return iter(self.by_name().values())

    def broken(self) -> dict[str, str]:
        """Return why names cannot be used, through the fault of the packages that add them."""
        return {name: str(found) for name, found in self._tried() if isinstance(found, InputError)}

    def _tried(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, type[T] | InputError]]:
        for name in self.names if names is None else names:
            try:
                yield name, self[name]
            except InputError as error:
                yield name, error

    def check(self, name: str, *others: str) -> None:
        """Raise `InputError` unless `name` is in the table or among `others`, as `auto`."""
        if name not in (*others, *self.names):
            raise InputError(f"{self.option} {name}: expected one of {', '.join((*others, *self.names))}")

    def listed(self, *first: str) -> str:
        """Return the names for a help text, as `auto, torch, openvino or trt`."""
        *rest, last = (*first, *self.names)
        return f"{', '.join(rest)} or {last}" if rest else last

    @contextlib.contextmanager
    def added(self, name: str, where: str) -> Iterator[None]:
        """Add `"module:Class"` (absolute) under `name` for the duration of a `with` block.

        Raises
        ------
        ValueError
            The name is in the table.
        """
        if name in self.names:
            raise ValueError(f"{self.option} {name}: is in the table already; choose another name")
        self._added[name] = (EntryPoint(name, where, self.group),)
        try:
            yield
        finally:
            del self._added[name]


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "that package"


def _class(found: Any) -> type[Any]:
    """Return what an entry point names; raises `TypeError` unless it is a class."""
    if not isinstance(found, type):
        raise TypeError(f"is a {type(found).__name__}, not a class")
    return found
