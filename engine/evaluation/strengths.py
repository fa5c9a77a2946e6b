"""Strengths, factors on the occluders of a bank: a single one has its RUN in `--out`, several one each below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...export.bank import OccluderBank
from ...export.bank_header import EmbeddedBank
from ...export.errors import InputError
from ...kernels.ball import largest_difference
from ..data.memory import available
from ..engines.base import Engine
from .config import strength_name
from .store import STORE
from .summary import SUMMARY_FILE, read_summary


def check_out(out: Path, strengths: Sequence[float]) -> None:
    """Raise `InputError` where `out` holds a RUN and there are to be several, several for a single one, or others."""
    held = sorted(_held(out))
    listed = ", ".join(map(strength_name, held))
    several = len(strengths) > 1
    if several and ((out / STORE).exists() or (out / SUMMARY_FILE).exists()):
        raise InputError(f"{out}: holds the RUN of a single strength; use another --out or remove it")
    if not several and held and not (out / STORE).exists():
        raise InputError(f"{out}: holds the RUNs of --strength {listed}; name these, or use another --out")
    if several and (further := [strength for strength in held if strength not in strengths]):
        raise InputError(
            f"{out}: holds a RUN of strength {strength_name(further[0])}, too; name it, or use another --out"
        )
    if not several and (together := _together(out)):
        listed = ",".join(map(strength_name, together))
        raise InputError(f"{out}: is one of several RUNs; use --strength {listed} --out {out.parent}, or another --out")


def _together(out: Path) -> Sequence[float]:
    """Return the strengths that a RUN was evaluated with, whose frontier its summary has; empty for one by itself."""
    try:
        frontier = read_summary(out / SUMMARY_FILE).frontier
    except (InputError, OSError):  # damaged or not there: it is written anew
        return ()
    return () if frontier is None else frontier.strengths


def _held(out: Path) -> list[float]:
    """Return the strengths that have a RUN below a folder."""
    found: list[float] = []
    for folder in out.glob("*"):
        try:
            strength = float(folder.name)
        except ValueError:
            continue
        if strength_name(strength) == folder.name and ((folder / STORE).exists() or (folder / SUMMARY_FILE).exists()):
            found.append(strength)
    return found


def check_strengths(bank: OccluderBank | EmbeddedBank, strengths: Sequence[float], size: int, name: str) -> None:
    """Raise `InputError` for strengths that the bank cannot have.

    Parameters
    ----------
    size
        Side of the pictures.
    name
        The model, or the artefact that embeds the bank.
    """
    if isinstance(bank, EmbeddedBank) and tuple(strengths) != (1.0,):
        asked = ",".join(map(strength_name, strengths))
        raise InputError(
            f"--strength {asked}: {name} embeds its bank, at strength 1 only; leave --strength out, or evaluate the "
            "model with --occluders"
        )
    # ε of the largest difference of two pictures: beyond it every pixel is clamped.
    largest = largest_difference(bank.norm, size)
    for strength in strengths:
        if strength != 1 and strength * bank.epsilon > largest:
            raise InputError(
                f"--strength {strength_name(strength)}: {strength_name(strength)} · ε = "
                f"{strength * bank.epsilon:g}, no two pictures differ by more than {largest:g}; use at most "
                f"{largest / bank.epsilon:g}"
            )


def noise_row(epsilon: float, norm: str, size: int, seed: int) -> Tensor:
    """Return the noise control: seeded random signs on the ε sphere, float32 [S, S, 3] in pixel units."""
    signs = torch.randint(0, 2, (size, size, 3), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    return signs * (epsilon if norm == "linf" else epsilon / signs.norm())


def scaled_rows(bank: OccluderBank, strengths: Sequence[float], seed: int) -> Tensor:
    """Return the bank and a noise row at each strength, one after the other: float32 [N · (K + 1), S, S, 3].

    Raises
    ------
    InputError
        They do not fit into the memory.
    """
    count, size = len(bank.occluders) + 1, bank.occluders.shape[1]
    bytes_needed, free = 4 * len(strengths) * count * size * size * 3, available()
    if len(strengths) > 1 and bytes_needed > free:
        raise _too_large(strengths, bytes_needed, f"{free / 1e9:.1f} GB of memory are free")
    rows = torch.empty(len(strengths) * count, size, size, 3)
    for strength, part in zip(strengths, rows.split(count), strict=True):
        torch.mul(bank.occluders, strength, out=part[:-1])
        part[-1] = noise_row(strength * bank.epsilon, bank.norm, size, seed)
    return rows


def load_rows(engine: Engine, rows: Tensor, strengths: Sequence[float]) -> None:
    """Load what `scaled_rows` returns into an engine; raise `InputError` if it does not fit into its memory."""
    try:
        engine.load_bank(rows)
    except torch.OutOfMemoryError as error:
        raise _too_large(strengths, rows.nbytes, f"they do not fit into {engine.device}") from error


def _too_large(strengths: Sequence[float], count: int, why: str) -> InputError:
    asked = ",".join(map(strength_name, strengths))
    return InputError(
        f"--strength {asked}: the bank at these strengths takes {count / 1e9:.1f} GB, {why}; give fewer at a time, "
        "each with an --out of its own"
    )
