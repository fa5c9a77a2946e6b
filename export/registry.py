"""Tables of what varies: engines, loaders, formats, model families, objectives, each a class in a file of its own.

A folder's table maps a name to `"module:Class"`; the module is imported when the class is asked for. Another package
adds to a table through Python entry points of the table's group, as `gfo.engines`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from .errors import InputError

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
    def _added(self) -> dict[str, str]:
        found = {entry.name: entry.value for entry in entry_points(group=self.group)}
        return {name: value for name, value in found.items() if name not in self._classes}

    @property
    def own(self) -> tuple[str, ...]:
        """The project's own names."""
        return tuple(self._classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the project's own first."""
        return (*self._classes, *self._added)

    def __getitem__(self, name: str) -> type[T]:
        """Import and return the class of that name.

        Raises
        ------
        InputError
            There is none, or the package that adds it cannot be imported.
        """
        own = self._classes.get(name)
        where = own or self._added.get(name)
        if where is None:
            raise InputError(f"{self.option} {name}: expected one of {', '.join(self.names)}")
        module, _, found = where.partition(":")
        if own is not None:
            return getattr(import_module(module, self._package), found)
        try:
            return getattr(import_module(module), found)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"{self.option} {name}: cannot load its entry point {where} ({error}); fix or uninstall that package"
            ) from error

    def classes(self) -> Iterator[type[T]]:
        """Import and yield every class, in the order of `names`."""
        return (self[name] for name in self.names)

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
        """Add `"module:Class"` (absolute) under `name` for the duration of a `with` block."""
        self._added[name] = where
        try:
            yield
        finally:
            del self._added[name]
