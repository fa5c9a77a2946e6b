"""Choosing an engine, and opening the chosen one.

`choose_engine` decides and says why; `open_engine` opens what was chosen for a `with` block, so that nothing stays open
when a later step fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...export.classifier import GRAPH_PRECISIONS
from ...export.errors import EngineUnavailable, InputError
from ...export.options import read_options
from ...export.subject import Subject
from ..devices import resolve_device
from . import ENGINES
from .base import Engine, check_precision

Refusal = InputError | EngineUnavailable
SHORTHANDS = {"impl": "--impl", "compiled": "--compiled", "provider": "--provider"}
"""Options of engines that have an option of their own in the commands."""


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs, at which precision, on which device.

    Attributes
    ----------
    name
        A name in `ENGINES`, or `auto`: the fastest available one.
    precision
        fp32, bf16, fp16 or int8; None means that of the artefact, or fp32 for a classifier.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    options
        The engine's own, by name, as texts or values; see the `Options` of its class. `auto` passes over engines
        that lack one of them.
    pairs
        Preferred number of pairs per pass, for engines whose passes have a fixed size; others do not read it.
    reason
        Why this engine, once it is chosen.
    alternatives
        For `auto`, the next ones to try should this one not open.
    """

    name: str = "auto"
    precision: str | None = None
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: int | None = None
    reason: str = ""
    alternatives: tuple[EngineChoice, ...] = ()


def choose_engine(choice: EngineChoice, subject: Subject) -> EngineChoice:
    """Resolve the name and the precision, and check all that can be known without opening the engine.

    Returns
    -------
    EngineChoice
        With a name in `ENGINES`, a precision and a reason. For `auto` it is the best-ranked engine that is available
        for the device, and the others are its alternatives.

    Raises
    ------
    InputError
        An unknown engine, precision or option, a precision or format that the engine lacks.
    EngineUnavailable
        The engine's library or device is not available.
    """
    ENGINES.check(choice.name, "auto")
    precision = choice.precision or subject.exported_precision or "fp32"
    if precision not in GRAPH_PRECISIONS:
        raise InputError(f"--precision {precision}: expected one of {', '.join(GRAPH_PRECISIONS)}")
    check_precision(subject, precision)
    choice = replace(choice, precision=precision)
    if choice.name != "auto":
        _made(choice, subject)
        return replace(choice, reason="requested")
    found, refusals = list[EngineChoice](), dict[str, Refusal]()
    for name in _ranked(subject, choice.device):
        candidate = replace(choice, name=name)
        try:
            _made(candidate, subject)
        except (EngineUnavailable, InputError) as error:
            refusals[name] = error
        else:
            found.append(candidate)
    if not found:
        raise _none_runs(refusals)
    first, *others = (replace(candidate, reason=_because(refusals)) for candidate in found)
    return replace(first, alternatives=tuple(others))


@contextlib.contextmanager
def open_engine(choice: EngineChoice, subject: Subject) -> Iterator[Engine]:
    """Choose an engine (`choose_engine`), unless `choice` is resolved already, and open it for a `with` block.

    Under `auto` the alternatives are tried in their order where an engine does not open, as when a network cannot be
    exported. `Engine.reason` says why this one runs.

    Raises
    ------
    InputError, EngineUnavailable
        As `choose_engine`, and whatever prevents the engine from opening.
    """
    chosen = choice if choice.reason else choose_engine(choice, subject)
    refusals: dict[str, Refusal] = {}
    with contextlib.ExitStack() as stack:
        for candidate in (chosen, *chosen.alternatives):
            engine = _made(candidate, subject)
            try:
                stack.enter_context(engine)
            except (EngineUnavailable, InputError) as error:
                if not chosen.alternatives:
                    raise
                # Not the error itself: its traceback would keep the engine's memory while another one runs.
                refusals[candidate.name] = type(error)(str(error))
            else:
                engine.reason = f"{candidate.reason}{_listed(refusals, '; not ')}"
                break
        else:
            raise _none_runs(refusals)
        yield engine


def _ranked(subject: Subject, device: str) -> list[str]:
    """Return the engines that `auto` considers, the fastest first; for an artefact, all that run its format."""
    kind, last = resolve_device(device).type, len(ENGINES.names)
    classes = ENGINES.by_name()
    if subject.format is None:
        considered = [name for name, found in classes.items() if kind in found.rank]
    else:
        considered = [name for name, found in classes.items() if subject.format in found.formats]
    return sorted(considered, key=lambda name: classes[name].rank.get(kind, last))


def _made(choice: EngineChoice, subject: Subject) -> Engine:
    found = ENGINES[choice.name]
    options = read_options(found.Options, choice.options, "--engine-option", f"engine {choice.name}", SHORTHANDS)
    return found(subject, str(choice.precision), choice.device, options, choice.pairs)


def _because(refusals: Mapping[str, Refusal]) -> str:
    return f"the fastest available engine{_listed(refusals, '; not ')}"


def _listed(refusals: Mapping[str, Refusal], before: str) -> str:
    return "".join(f"{before}{name}: {error}" for name, error in refusals.items())


def _none_runs(refusals: Mapping[str, Refusal]) -> Refusal:
    kind = EngineUnavailable if any(isinstance(e, EngineUnavailable) for e in refusals.values()) else InputError
    return kind(f"--engine auto: none of them runs here: {_listed(refusals, '; ').removeprefix('; ')}")
