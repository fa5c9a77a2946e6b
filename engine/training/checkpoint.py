"""What a training run saves as it goes: `<out>.parts/` with one file a finished class, and the epoch of those in work.

A big bank is never rewritten: parts are joined once, at the end, and removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...export.bank import BankHeader, OccluderBank, picture_key
from ...export.errors import InputError
from ...export.files import atomic_path, save_tensors

Splits = Mapping[int, tuple[Sequence[str], Sequence[str]]]


@dataclass(frozen=True)
class EpochState:
    """Classes in work after `epoch` epochs: `occluders` and what the optimizer keeps, each float32 [G, S, S, 3]."""

    tensors: dict[str, Tensor]
    epoch: int


class TrainingParts:
    """The parts of one bank. `splits` maps class ids to (fitted, held out) paths."""

    def __init__(self, out: Path, header: BankHeader, splits: Splits) -> None:
        if out.is_dir() or not out.name:
            raise InputError(f"--out {out}: is a folder; name the bank's file in it, as {out / 'bank.safetensors'}")
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self._header = header
        self._splits = splits
        self.precision = self.device = ""

    def finished_bank(self, asked: str) -> OccluderBank | None:
        """The bank at `out` if it is the result of the same configuration; None if there is none.

        Raises
        ------
        InputError
            `out` is a bank of another configuration; what differs is named.
        """
        if not self.out.exists():
            return None
        bank = OccluderBank.load(self.out)
        self._compare(self.out, json.loads(bank.header.to_json()), bank.fitted, bank.held_out)
        self._compare_precision(self.out, asked, bank.header.objective.get("precision"))
        shutil.rmtree(self.folder, ignore_errors=True)  # left over if the last run was killed while it cleaned up
        return bank

    def open(self, asked: str, device: str, choose_precision: Callable[[], str]) -> None:
        """Start on `device`, or resume what is there with the precision that it was started with.

        Raises
        ------
        InputError
            Parts of another configuration; what differs is named.
        """
        self.device = device
        config = self.folder / "config.json"
        if config.is_file():
            try:
                stored = json.loads(config.read_text())
                header, self.precision = stored["header"], stored["precision"]
                keys = [torch.tensor(stored[name], dtype=torch.int64) for name in ("fitted", "held_out")]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{config}: not readable ({error}); remove {self.folder} to start over") from error
            self._compare(self.folder, header, *keys)
            self._compare_precision(self.folder, asked, self.precision)
            return
        # Before anything is measured: it fails early on a read-only disk.
        self.folder.mkdir(parents=True, exist_ok=True)
        self.precision = choose_precision()
        fitted, held_out = self._keys()
        stored = {"header": json.loads(self._header.to_json()), "precision": self.precision}
        with atomic_path(config) as partial:
            partial.write_text(json.dumps({**stored, "fitted": fitted.tolist(), "held_out": held_out.tolist()}))

    def _compare(self, where: Path, theirs: dict[str, object], fitted: Tensor, held_out: Tensor) -> None:
        ours = json.loads(self._header.to_json())
        volatile = ("gfo_version", "weights")  # the hash says what the weights are; where they lie may change
        # Banks from before there was a choice of optimizer do not name it.
        objective = {"optimizer": "momentum", **theirs["objective"]}  # type: ignore[dict-item]
        theirs = {**theirs, "objective": {k: v for k, v in objective.items() if k in ours["objective"]}}
        differing = [key for key in ours if key not in volatile and ours[key] != theirs.get(key)]
        if differing:
            listed = "; ".join(_difference(key, theirs.get(key), ours[key]) for key in differing[:3])
            raise InputError(f"{where}: was made with another configuration ({listed}); use another --out or remove it")
        if not all(torch.equal(a, b) for a, b in zip(self._keys(), (fitted, held_out), strict=True)):
            raise InputError(f"{where}: was made with other training pictures; use another --out or remove it")

    def _compare_precision(self, where: Path, asked: str, theirs: str | None) -> None:
        if asked not in ("auto", theirs):
            raise InputError(
                f"{where}: was trained with precision {theirs}, not {asked}; use that, another --out, or remove it"
            )

    def _keys(self) -> tuple[Tensor, Tensor]:
        fitted, held_out = (
            torch.tensor(sorted(picture_key(p) for split in self._splits.values() for p in split[i]), dtype=torch.int64)
            for i in (0, 1)
        )
        return fitted, held_out

    def _part(self, class_id: int) -> Path:
        return self.folder / f"{class_id}.safetensors"

    def has(self, class_id: int) -> bool:
        """Whether the class is finished."""
        return self._part(class_id).is_file()

    def save(self, class_id: int, occluder: Tensor) -> None:
        """A finished class: float32 [S, S, 3]."""
        save_tensors(self._part(class_id), {"occluder": occluder})

    def note_quarantined(self, class_id: int, quarantined: Sequence[Mapping[str, str]]) -> None:
        """Remember the pictures of a class that could not be read."""
        if quarantined:
            with atomic_path(self.folder / f"{class_id}.quarantined.json") as partial:
                partial.write_text(json.dumps(list(quarantined)))

    def save_epoch(self, class_ids: Sequence[int], tensors: Mapping[str, Tensor], epoch: int) -> None:
        """The classes in work, after an epoch; see `EpochState`."""
        metadata = {"ids": json.dumps(list(class_ids)), "epoch": str(epoch)}
        save_tensors(self.folder / "epoch.safetensors", dict(tensors), metadata)

    def load_epoch(self, class_ids: Sequence[int], names: Iterable[str]) -> EpochState | None:
        """Where these classes stopped, with the tensors asked for; None if they have not begun, or in other company.

        Raises
        ------
        InputError
            The file is damaged; it is removed, so that the same command starts these classes over.
        """
        from safetensors import safe_open

        path = self.folder / "epoch.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                if json.loads(metadata["ids"]) != list(class_ids):
                    return None
                return EpochState({name: file.get_tensor(name) for name in names}, int(metadata["epoch"]))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            path.unlink()
            raise InputError(f"{path}: damaged ({error}) and removed; run the same command again") from error

    def drop_epoch(self) -> None:
        """The classes in work are finished."""
        (self.folder / "epoch.safetensors").unlink(missing_ok=True)

    def join(self, say: Callable[[str], None]) -> OccluderBank:
        """Write the bank from its parts, and remove them.

        Raises
        ------
        InputError
            A part that is damaged; it is removed, so that the same command trains it again.
        """
        rows = [self._read_part(class_id) for class_id in self._header.class_ids]
        quarantined = [
            item
            for class_id in self._header.class_ids
            for file in [self.folder / f"{class_id}.quarantined.json"]
            if file.is_file()
            for item in json.loads(file.read_text())
        ]
        how = {"precision": self.precision, "device": self.device, "quarantined": quarantined}
        objective = {**self._header.objective, **how}
        fitted, held_out = self._keys()
        bank = OccluderBank(torch.stack(rows), replace(self._header, objective=objective), fitted, held_out)
        bank.save(self.out)
        shutil.rmtree(self.folder)
        if quarantined:
            say(f"{len(quarantined)} pictures could not be read and were left out, the first: {quarantined[0]['path']}")
        return bank

    def _read_part(self, class_id: int) -> Tensor:
        part = self._part(class_id)
        try:
            return load_file(part)["occluder"]
        except (SafetensorError, KeyError, OSError) as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"{part}: damaged ({error}) and removed; run the same command again to train it"
            ) from error


def _difference(key: str, stored: object, asked: object) -> str:
    if isinstance(stored, dict) and isinstance(asked, dict):
        inner = [k for k in asked if asked[k] != stored.get(k)]
        return "; ".join(f"{k} {stored.get(k)}, not {asked[k]}" for k in inner[:2])
    if isinstance(stored, list) and isinstance(asked, list):
        return f"{len(stored)} {key.replace('_', ' ')}, not the {len(asked)} asked for"
    return f"{key} {str(stored)[:30]}, not {str(asked)[:30]}"
