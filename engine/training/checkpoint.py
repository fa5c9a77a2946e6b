"""Checkpoints: what a training run saves as it goes, so that the same command resumes after an interruption.

`<out>.parts/` holds `config.json`, a file per finished class, and the state of the classes in work after their last
epoch. The bank itself is written once, at the end, and the folder is removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...export.bank import OccluderBank, picture_key
from ...export.bank_header import BankHeader
from ...export.errors import InputError
from ...export.files import atomic_path, load_tensors, save_tensors
from ...export.records import read_record

Splits = Mapping[int, tuple[Sequence[str], Sequence[str]]]


@dataclass(frozen=True)
class Unreadable:
    """A training picture that could not be read: its path relative to the data folder, and the decoder's reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class EpochState:
    """State of the classes in work after `epoch` epochs: `occluders` and the optimizer's tensors, [G, S, S, 3]."""

    tensors: dict[str, Tensor]
    epoch: int


@dataclass(frozen=True)
class _Begun:
    """Contents of `config.json`: the bank's header, the network's precision and the keys of the pictures."""

    header: dict[str, Any]
    precision: str
    fitted: list[int]
    held_out: list[int]


class Checkpoint:
    """The checkpoint of one bank.

    Parameters
    ----------
    out
        The bank's file.
    header
        Its header as far as it is known before training.
    splits
        {class id: (fitted paths, held-out paths)}.

    Raises
    ------
    InputError
        `out` is a folder.
    """

    def __init__(self, out: Path, header: BankHeader, splits: Splits) -> None:
        if out.is_dir() or not out.name:
            raise InputError(f"--out {out}: is a folder; name the bank's file in it, as {out / 'bank.safetensors'}")
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self._header = header
        self._splits = splits
        self.precision = self.device = ""

    def finished_bank(self, precision: str) -> OccluderBank | None:
        """Return the bank at `out` if the same configuration made it, or None if there is none.

        Raises
        ------
        InputError
            `out` is a bank of another configuration; the message names the difference.
        """
        if not self.out.exists():
            return None
        bank = OccluderBank.load(self.out)
        self._compare(self.out, json.loads(bank.header.to_json()), bank.fitted, bank.held_out)
        _compare_precision(self.out, precision, bank.header.objective.get("precision"))
        shutil.rmtree(self.folder, ignore_errors=True)  # left over if the last run was killed while it cleaned up
        return bank

    def open(self, precision: str, device: str, choose_precision: Callable[[], str]) -> None:
        """Start on `device`, or resume with the precision that training began with.

        Raises
        ------
        InputError
            The checkpoint is damaged or of another configuration; the message names the difference.
        """
        self.device = device
        config = self.folder / "config.json"
        if config.is_file():
            begun = read_record(_Begun, config.read_bytes(), config, f"remove {self.folder} to start over")
            fitted, held_out = (torch.tensor(keys, dtype=torch.int64) for keys in (begun.fitted, begun.held_out))
            self._compare(self.folder, begun.header, fitted, held_out)
            _compare_precision(self.folder, precision, begun.precision)
            self.precision = begun.precision
            return
        # Before anything is measured: it fails early on a read-only disk.
        self.folder.mkdir(parents=True, exist_ok=True)
        self.precision = choose_precision()
        fitted, held_out = self._keys()
        begun = _Begun(json.loads(self._header.to_json()), self.precision, fitted.tolist(), held_out.tolist())
        with atomic_path(config) as partial:
            partial.write_text(json.dumps(asdict(begun)))

    def _compare(self, where: Path, theirs: dict[str, Any], fitted: Tensor, held_out: Tensor) -> None:
        ours = json.loads(self._header.to_json())
        volatile = ("gfo_version", "weights")  # the hash identifies the weights; their file may move
        # Banks from before there was a choice of optimizer do not name it.
        objective = {"optimizer": "momentum", **theirs.get("objective", {})}
        theirs = {**theirs, "objective": {k: v for k, v in objective.items() if k in ours["objective"]}}
        differing = [key for key in ours if key not in volatile and ours[key] != theirs.get(key)]
        if differing:
            listed = "; ".join(_difference(key, theirs.get(key), ours[key]) for key in differing[:3])
            raise InputError(f"{where}: was made with another configuration ({listed}); use another --out or remove it")
        if not all(torch.equal(a, b) for a, b in zip(self._keys(), (fitted, held_out), strict=True)):
            raise InputError(f"{where}: was made with other training pictures; use another --out or remove it")

    def _keys(self) -> tuple[Tensor, Tensor]:
        fitted, held_out = (
            torch.tensor(sorted(picture_key(p) for split in self._splits.values() for p in split[i]), dtype=torch.int64)
            for i in (0, 1)
        )
        return fitted, held_out

    def _part(self, class_id: int) -> Path:
        return self.folder / f"{class_id}.safetensors"

    def _unreadable(self, class_id: int) -> Path:
        return self.folder / f"{class_id}.quarantined.json"

    def has(self, class_id: int) -> bool:
        """Return whether the class is finished."""
        return self._part(class_id).is_file()

    def save(self, class_id: int, occluder: Tensor) -> None:
        """Save the occluder of a finished class, float32 [S, S, 3]."""
        save_tensors(self._part(class_id), {"occluder": occluder})

    def note_unreadable(self, class_id: int, unreadable: Sequence[Unreadable]) -> None:
        """Save the list of a class's unreadable pictures, if there are any."""
        if unreadable:
            with atomic_path(self._unreadable(class_id)) as partial:
                partial.write_text(json.dumps([asdict(picture) for picture in unreadable]))

    def save_epoch(self, class_ids: Sequence[int], state: EpochState) -> None:
        """Save the state of the classes in work after an epoch."""
        metadata = {"ids": json.dumps(list(class_ids)), "epoch": str(state.epoch)}
        save_tensors(self.folder / "epoch.safetensors", state.tensors, metadata)

    def load_epoch(self, class_ids: Sequence[int], names: Iterable[str]) -> EpochState | None:
        """Return the saved state of these classes with the named tensors; None if it is of other classes or missing.

        Raises
        ------
        InputError
            The file is damaged. It is removed, so that the same command starts these classes over.
        """
        path = self.folder / "epoch.safetensors"
        if not path.is_file():
            return None
        try:
            names = list(names)
            metadata, tensors = load_tensors(path, names)
            if json.loads(metadata["ids"]) != list(class_ids):
                return None
            return EpochState({name: tensors[name] for name in names}, int(metadata["epoch"]))
        except (KeyError, ValueError, TypeError) as error:
            path.unlink()
            raise InputError(f"{path}: damaged ({error}) and removed; run the same command again") from error

    def drop_epoch(self) -> None:
        """Remove the state of the classes in work: they are finished."""
        (self.folder / "epoch.safetensors").unlink(missing_ok=True)

    def join(self, say: Callable[[str], None]) -> OccluderBank:
        """Write the bank from the finished classes, and remove the checkpoint.

        Raises
        ------
        InputError
            A class's file is damaged. It is removed, so that the same command trains the class again.
        """
        rows = [self._read_part(class_id) for class_id in self._header.class_ids]
        unreadable = [asdict(picture) for class_id in self._header.class_ids for picture in self._read_list(class_id)]
        how = {"precision": self.precision, "device": self.device, "quarantined": unreadable}
        objective = {**self._header.objective, **how}
        fitted, held_out = self._keys()
        bank = OccluderBank(torch.stack(rows), replace(self._header, objective=objective), fitted, held_out)
        bank.save(self.out)
        shutil.rmtree(self.folder)
        if unreadable:
            say(f"{len(unreadable)} pictures could not be read and were left out, the first: {unreadable[0]['path']}")
        return bank

    def _read_list(self, class_id: int) -> list[Unreadable]:
        path = self._unreadable(class_id)
        if not path.is_file():
            return []
        return read_record(list[Unreadable], path.read_bytes(), path, f"remove {self.folder} to start over")

    def _read_part(self, class_id: int) -> Tensor:
        part = self._part(class_id)
        try:
            return load_tensors(part, ["occluder"])[1]["occluder"]
        except (KeyError, ValueError, OSError) as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"{part}: damaged ({error}) and removed; run the same command again to train it"
            ) from error


def _compare_precision(where: Path, asked: str, theirs: str | None) -> None:
    if asked not in ("auto", theirs):
        raise InputError(
            f"{where}: was trained with precision {theirs}, not {asked}; use that, another --out, or remove it"
        )


def _difference(key: str, stored: object, asked: object) -> str:
    if isinstance(stored, dict) and isinstance(asked, dict):
        inner = [k for k in asked if asked[k] != stored.get(k)]
        return "; ".join(f"{k} {stored.get(k)}, not {asked[k]}" for k in inner[:2])
    if isinstance(stored, list) and isinstance(asked, list):
        return f"{len(stored)} {key.replace('_', ' ')}, not the {len(asked)} asked for"
    return f"{key} {str(stored)[:30]}, not {str(asked)[:30]}"
