"""Checkpoints: what a training run saves as it goes, so that the same command resumes after an interruption.

`<out>.parts/` holds `config.json`, a file per finished class, and the state of the classes in work after their last
epoch. Each of these names the checksum of `config.json`, its classes and the state of their pictures: it belongs to
that training alone, and a class whose pictures have changed since is trained again. The bank itself is written once, at
the end, and the folder is removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...export.bank import OccluderBank, picture_key
from ...export.bank_header import USES, BankHeader
from ...export.errors import InputError
from ...export.files import load_tensors, remove_abandoned, save_tensors
from ...export.records import STRICT, checksum, load_record, save_record
from ..data.files import PictureFiles
from .batches import Unreadable
from .preserve import Preserved

if TYPE_CHECKING:
    from .target import Reached

CONFIG = "config.json"
# What a header has under `objective` only where it is asked for.
_OPTIONAL = ("preserve", "correct_only", "augment", "target_accuracy")
Splits = Mapping[int, tuple[Sequence[str], Sequence[str]]]


@dataclass(frozen=True)
class EpochState:
    """State of the classes in work after `epoch` epochs: `occluders` and the optimizer's tensors, [G, S, S, 3]."""

    tensors: dict[str, Tensor]
    epoch: int


@dataclass(frozen=True)
class _Begun:
    """Contents of `config.json`: the bank's header, the network's precision and the keys of the pictures."""

    __pydantic_config__: ClassVar = STRICT

    header: dict[str, Any]
    precision: str
    fitted: list[int]
    held_out: list[int]
    preserved: list[int] = field(default_factory=list)  # nothing was, in older ones

    def facts(self) -> dict[str, Any]:
        """Return the record; where nothing is preserved it is that of older versions, whose parts name its checksum."""
        return {key: value for key, value in asdict(self).items() if key != "preserved" or value}

    def used(self) -> dict[str, Tensor]:
        """Return the keys of the pictures by what they are used for, as `Described.used`."""
        return {use: torch.tensor(getattr(self, use), dtype=torch.int64) for use in USES}


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
    files
        The pictures.
    preserved
        Pictures of other classes that are preserved, if any.
    say
        Takes a line about what is damaged or has changed, and is made again.

    Raises
    ------
    InputError
        `out` is a folder.
    """

    def __init__(
        self,
        out: Path,
        header: BankHeader,
        splits: Splits,
        files: PictureFiles,
        preserved: Preserved | None,
        say: Callable[[str], None],
    ) -> None:
        if out.is_dir() or not out.name:
            raise InputError(f"--out {out}: is a folder; name the bank's file in it, as {out / 'bank.safetensors'}")
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self._header = header
        self._splits = splits
        self._files = files
        self._preserved = preserved
        self._say = say
        self._pictures: dict[int, str] = {}
        self.precision = self.device = self._run = ""

    def finished_bank(self, precision: str) -> OccluderBank | None:
        """Return the bank at `out` if the same configuration made it, or None if there is none.

        Raises
        ------
        InputError
            `out` is a bank of another configuration; the message names the difference.
        """
        remove_abandoned(self.out)
        if not self.out.exists():
            return None
        bank = OccluderBank.load(self.out)
        self._compare(self.out, json.loads(bank.header.to_json()), bank.used)
        _compare_precision(self.out, precision, bank.header.objective.get("precision"))
        shutil.rmtree(self.folder, ignore_errors=True)  # left over if the last run was killed while it cleaned up
        return bank

    def open(self, precision: str, device: str, choose_precision: Callable[[], str]) -> None:
        """Start on `device`, or resume with the precision that training began with; the folder is there.

        Raises
        ------
        InputError
            The checkpoint is damaged or of another configuration; the message names the difference.
        """
        self.device = device
        config = self.folder / CONFIG
        if config.is_file():
            begun = load_record(_Begun, config, f"remove {self.folder} to start over")
            self._compare(self.folder, begun.header, begun.used())
            _compare_precision(self.folder, precision, begun.precision)
        else:
            used = {use: keys.tolist() for use, keys in self._keys().items()}
            begun = _Begun(json.loads(self._header.to_json()), choose_precision(), **used)
            save_record(config, begun.facts())
        self.precision = begun.precision
        self._run = checksum(begun.facts())
        # Before any of them is read.
        others = [] if self._preserved is None else self._preserved.stamps()
        self._pictures = {class_id: self._state(class_id, others) for class_id in self._splits}

    def _state(self, class_id: int, others: Sequence[int]) -> str:
        """Return what differs once a picture of the class, or a preserved one, has changed.

        Empty if one of them cannot be found now.
        """
        stamps = [*(self._files.stamp(path) for part in self._splits[class_id] for path in part), *others]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest() if all(stamps) else ""

    def _compare(self, where: Path, theirs: dict[str, Any], used: Mapping[str, Tensor]) -> None:
        ours = json.loads(self._header.to_json())
        volatile = ("gfo_version", "weights")  # the hash identifies the weights; their file may move
        # Banks from before there was a choice of optimizer do not name it.
        objective = {"optimizer": "momentum", **theirs.get("objective", {})}
        made_as = {*ours["objective"], *_OPTIONAL}
        theirs = {**theirs, "objective": {k: v for k, v in objective.items() if k in made_as}}
        differing = [key for key in ours if key not in volatile and ours[key] != theirs.get(key)]
        if differing:
            listed = "; ".join(_difference(key, theirs.get(key), ours[key]) for key in differing[:3])
            raise InputError(f"{where}: was made with another configuration ({listed}); use another --out or remove it")
        if not all(torch.equal(keys, used[use]) for use, keys in self._keys().items()):
            raise InputError(f"{where}: was made with other training pictures; use another --out or remove it")

    def _keys(self) -> dict[str, Tensor]:
        paths = {use: [p for split in self._splits.values() for p in split[i]] for i, use in enumerate(USES[:2])}
        paths["preserved"] = [] if self._preserved is None else self._preserved.paths
        return {use: torch.tensor(sorted(map(picture_key, found)), dtype=torch.int64) for use, found in paths.items()}

    def _part(self, class_id: int) -> Path:
        return self.folder / f"{class_id}.safetensors"

    def _epoch(self, class_ids: Sequence[int]) -> Path:
        """Return the file of the state of these classes; each group in work has one of its own."""
        return self.folder / f"epoch-{class_ids[0]}.safetensors"

    def has(self, class_id: int) -> bool:
        """Return whether the class is finished, and its file whole; one that is not is removed."""
        try:
            self._read_part(class_id)
        except FileNotFoundError:
            return False
        except (KeyError, ValueError, TypeError) as error:
            self._drop(self._part(class_id), error)
            return False
        return True

    def _drop(self, path: Path, why: Exception) -> None:
        path.unlink(missing_ok=True)
        self._say(f"{path}: removed ({why}); its classes are trained again")

    def save(
        self, class_id: int, occluder: Tensor, unreadable: Sequence[Unreadable], reached: Reached | None = None
    ) -> None:
        """Save the occluder of a finished class, float32 [S, S, 3], with what its bank's header tells of it."""
        listed = json.dumps([asdict(picture) for picture in unreadable])
        facts = self._facts([class_id], unreadable=listed)
        if reached is not None:
            facts["target"] = json.dumps({"class_id": class_id, **asdict(reached)})
        save_tensors(self._part(class_id), {"occluder": occluder}, facts)

    def save_epoch(self, class_ids: Sequence[int], state: EpochState) -> None:
        """Save the state of the classes in work after an epoch."""
        save_tensors(self._epoch(class_ids), state.tensors, self._facts(class_ids, epoch=str(state.epoch)))

    def _facts(self, class_ids: Sequence[int], **others: str) -> dict[str, str]:
        pictures = json.dumps([self._pictures[class_id] for class_id in class_ids])
        return {"run": self._run, "ids": json.dumps(list(class_ids)), "pictures": pictures, **others}

    def _check(self, metadata: Mapping[str, str], class_ids: Sequence[int]) -> None:
        """Raise `ValueError` unless a file is of this training and these pictures; a picture not found is unchanged."""
        if metadata["run"] != self._run or json.loads(metadata["ids"]) != list(class_ids):
            raise ValueError("of another training or class")
        before = json.loads(metadata["pictures"])
        now = [self._pictures[class_id] for class_id in class_ids]
        if any(a and b and a != b for a, b in zip(before, now, strict=True)):
            raise ValueError("pictures have changed since")

    def load_epoch(self, class_ids: Sequence[int], names: Iterable[str]) -> EpochState | None:
        """Return the saved state of these classes with the named tensors; None if it is of other classes or missing.

        A file that is damaged, or of pictures that have changed, is removed: these classes start over.
        """
        path, names = self._epoch(class_ids), list(names)
        try:
            metadata, tensors = load_tensors(path, names)
            if json.loads(metadata["ids"]) != list(class_ids):
                return None
            self._check(metadata, class_ids)
            return EpochState({name: tensors[name] for name in names}, int(metadata["epoch"]))
        except FileNotFoundError:
            return None
        except (KeyError, ValueError, TypeError) as error:
            self._drop(path, error)
            return None

    def drop_epoch(self, class_ids: Sequence[int]) -> None:
        """Remove the state of these classes: they are finished."""
        self._epoch(class_ids).unlink(missing_ok=True)

    def drop_unused(self) -> None:
        """Forget the configuration where nothing has been trained with it: the next one may be another."""
        if not any(self.folder.glob("*.safetensors")):
            (self.folder / CONFIG).unlink(missing_ok=True)

    def join(self) -> OccluderBank:
        """Write the bank from the finished classes, and remove the checkpoint.

        Raises
        ------
        InputError
            A class's file has been damaged since `has`; the same command trains the class again.
        """
        rows, unreadable, targets = list[Tensor](), list[dict[str, str]](), list[dict[str, Any]]()
        for class_id in self._header.class_ids:
            try:
                occluder, listed, target = self._read_part(class_id)
            except (KeyError, ValueError, TypeError, OSError) as error:
                raise InputError(f"{self._part(class_id)}: damaged ({error}); run the same command again") from error
            rows.append(occluder)
            unreadable += listed
            targets += target
        how: dict[str, Any] = {"precision": self.precision, "device": self.device, "quarantined": unreadable}
        if targets:
            how["targets"] = targets
        objective = {**self._header.objective, **how}
        bank = OccluderBank(torch.stack(rows), replace(self._header, objective=objective), **self._keys())
        bank.save(self.out)
        shutil.rmtree(self.folder)
        if unreadable:
            first = unreadable[0]["path"]
            self._say(f"{len(unreadable)} pictures could not be read and were left out, the first: {first}")
        zeros = sum(not target["strength"] for target in targets)
        if zeros:
            self._say(f"{zeros} classes are at the target accuracy without an occluder; theirs are zeros")
        short = [target for target in targets if not target["reached"]]
        if short:
            first = f"class {short[0]['class_id']} is left with {short[0]['accuracy']:.3f}"
            self._say(f"{len(short)} of {len(targets)} classes miss the target accuracy, the first: {first}")
        return bank

    def _read_part(self, class_id: int) -> tuple[Tensor, list[dict[str, str]], list[dict[str, Any]]]:
        metadata, tensors = load_tensors(self._part(class_id), ["occluder"])
        self._check(metadata, [class_id])
        target = [json.loads(metadata["target"])] if "target" in metadata else []
        return tensors["occluder"], json.loads(metadata["unreadable"]), target


def _compare_precision(where: Path, asked: str, theirs: str | None) -> None:
    if asked not in ("auto", theirs):
        raise InputError(
            f"{where}: was trained with precision {theirs}, not {asked}; use that, another --out, or remove it"
        )


def _difference(key: str, stored: object, asked: object) -> str:
    if isinstance(stored, dict) and isinstance(asked, dict):
        inner = [k for k in {**asked, **stored} if asked.get(k) != stored.get(k)]
        return "; ".join(_difference(k, stored.get(k), asked.get(k)) for k in inner[:2])
    if isinstance(stored, list) and isinstance(asked, list):
        return f"{len(stored)} {key.replace('_', ' ')}, not the {len(asked)} asked for"
    return f"{key} {str(stored)[:30]}, not {str(asked)[:30]}"
