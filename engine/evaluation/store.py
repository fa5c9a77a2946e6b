"""The labelled results of one run: a zarr group that `xarray.open_zarr` opens, written a block at a time.

Dimensions `image` and `occluder`; arrays `prediction`, `rank`, `margin`. A chunk is a block of pictures under every
occluder, checksummed, and written whole or not at all. Fill value −1 = not done, −2 = quarantined. The group's
`zarr.json`, which describes the arrays and the run, has its checksum among its attributes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from ...export.errors import InputError
from ...export.files import atomic_folder, atomic_path, naming, remove_abandoned, remove_old_partials
from ...export.records import checksum
from ...kernels.score import Score
from .summary import STORE, Quarantined, Run, plain, read_run_record

_FACTS, _CHECKSUM = "zarr.json", "sha256"
_ATTRIBUTES = ("run", "data_root", "coordinates")
CLEAN, NOISE = -1, -2
NOT_DONE, QUARANTINED = -1, -2
UNKNOWN = 0
"""Stamp of a picture of which nothing is known, as in an older store."""

FIT_UNSEEN, FIT_FITTED, FIT_HELD_OUT, FIT_PRESERVED = 0, 1, 2, 3

# Target number of pairs in a block, the most that an interrupted run loses (on a GPU two parts of whole blocks), within
# these numbers of pictures: few enough to hold in memory, and enough to keep the files of a large run few.
_BLOCK_PAIRS = 4096
READ_TOGETHER, _MOST = 32, 256


def block_size(rows: int) -> int:
    """Return the pictures in a block (and a chunk) for a number of occluder rows: a multiple of `READ_TOGETHER`."""
    return min(_MOST, max(1, _BLOCK_PAIRS // rows // READ_TOGETHER) * READ_TOGETHER)


class RunStore:
    """`RUN/predictions.zarr`. `create` or `open` it.

    Attributes
    ----------
    run
        What the run evaluates, and with what.
    paths, labels, fit
        Per picture: path relative to the data root, class id int32 [N], the bank's use of it int8 [N] (0 unseen,
        1 fitted, 2 held out, 3 preserved).
    occluders
        int32 [K+2]: −1 clean, the bank's class ids in row order, −2 noise; without noise [K+1].
    """

    def __init__(self, group: zarr.Group, path: Path) -> None:
        self._group = group
        self.path = path
        _check_facts(path)
        self.run = read_run_record(group.attrs["run"], path)
        self.paths: list[str] = [str(p) for p in self._array("path")[:]]  # type: ignore[union-attr]
        self.labels: NDArray[np.int32] = np.asarray(self._array("label")[:])
        self.fit: NDArray[np.int8] = np.asarray(self._array("fit")[:])
        self.occluders: NDArray[np.int32] = np.asarray(self._array("occluder")[:])
        self.block = self._array("prediction").chunks[0]
        # A chunk that is missing reads as the fill value.
        if "" in self.paths or bool((self.labels < 0).any() | (self.fit < 0).any() | (self.occluders < NOISE).any()):
            raise ValueError("a chunk of path, label, fit or occluder is missing")

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise KeyError(name)
        return array

    @classmethod
    def create(
        cls,
        run_dir: Path,
        run: Run,
        *,
        paths: Sequence[str],
        labels: Sequence[int],
        fit: Sequence[int],
        occluders: Sequence[int],
    ) -> RunStore:
        """Create an empty store, whole or not at all, with `occluders` for its columns.

        Raises `OSError` where it cannot be written.
        """
        with atomic_folder(run_dir / STORE) as partial:
            cls._create(partial, run, paths, labels, fit, occluders)
        return cls.open(run_dir, writable=True)

    @staticmethod
    def _create(
        path: Path,
        run: Run,
        paths: Sequence[str],
        labels: Sequence[int],
        fit: Sequence[int],
        occluders: Sequence[int],
    ) -> None:
        group = zarr.open_group(path, mode="w", zarr_format=3)
        shape = (len(paths), len(occluders))
        chunks = (block_size(shape[1]), shape[1])
        for name, dtype, fill in (("prediction", "int32", -1), ("rank", "int32", -1), ("margin", "float32", np.nan)):
            group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=fill,
                dimension_names=("image", "occluder"),
                compressors=_CODECS,
            )
        image = {"shape": shape[:1], "dimension_names": ("image",), "compressors": _CODECS}
        coordinates = {
            "path": np.array(list(paths), dtype=object),
            "label": np.array(labels, dtype=np.int32),
            "fit": np.array(fit, dtype=np.int8),
        }
        for name, values in coordinates.items():
            dtype = str if name == "path" else values.dtype
            fill = "" if name == "path" else -1
            group.create_array(name, dtype=dtype, fill_value=fill, chunks=shape[:1], **image)[:] = values
        group.create_array("stamp", dtype="int64", fill_value=UNKNOWN, chunks=chunks[:1], **image)
        group.create_array("reason", dtype=str, fill_value="", chunks=chunks[:1], **image)
        occluder = group.create_array(
            "occluder",
            shape=shape[1:],
            dtype="int32",
            fill_value=-3,
            dimension_names=("occluder",),
            compressors=_CODECS,
        )
        occluder[:] = np.array(occluders, dtype=np.int32)
        group.attrs.update({"coordinates": "path label fit stamp reason occluder"})
        with warnings.catch_warnings():  # xarray asks for consolidated metadata; zarr warns that v3 has not settled it
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(group.store)
        _describe(path, run)

    @classmethod
    def open(cls, run_dir: Path, *, writable: bool = False) -> RunStore:
        """Open an existing store.

        Raises
        ------
        InputError
            Not there, not a store of this kind, or damaged.
        """
        path = Path(run_dir) / STORE
        if not path.is_dir():
            raise InputError(f"{path}: no such store; gfo-eval --out {run_dir} writes one")
        try:
            if writable:
                remove_abandoned(path)
                remove_abandoned(path / _FACTS)
                remove_old_partials(path)
            return cls(zarr.open_group(path, mode="r+" if writable else "r"), path)
        except InputError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, FileNotFoundError) as error:
            raise InputError(f"{path}: not a store of gfo-eval ({error}); remove it and evaluate again") from error

    def __len__(self) -> int:
        return len(self.paths)

    def update_run(self, run: Run) -> None:
        """Record where things lie now, when a run is resumed from another place."""
        if run != self.run:
            _describe(self.path, run)
            self.run = run

    def predictions(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return top-1 class ids, int32 [stop − start, K+2].

        Raises
        ------
        InputError
            A picture that is not done, or a chunk that fails its checksum.
        """
        try:
            found = np.asarray(self._array("prediction")[start:stop])
            if bool((found == NOT_DONE).any()):
                raise ValueError("not all are done")
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.path}: pictures {start}..{stop - 1} are missing or damaged ({error}); run the same gfo-eval "
                "again, it computes what is missing"
            ) from error
        return found

    def end(self, start: int) -> int:
        """Return where the block that starts here ends."""
        return min(start + self.block, len(self))

    def count(self, starts: Iterable[int]) -> int:
        """Return how many pictures are in the blocks that start here."""
        return sum(self.end(start) - start for start in starts)

    def pending(self, starts: Sequence[int] | None = None) -> list[int]:
        """Return which blocks, of all or of those that start here, are not done, or whose parts do not go together."""
        starts = range(0, len(self), self.block) if starts is None else starts
        return [start for start in starts if not self._done(start)]

    def _done(self, start: int) -> bool:
        stop = self.end(start)
        try:
            rank, margin, reason = (np.asarray(self._array(n)[start:stop]) for n in ("rank", "margin", "reason"))
            prediction = self.predictions(start, stop)
        except (ValueError, RuntimeError):  # a chunk fails its checksum; an `InputError` is a `ValueError`
            return False
        left_out, right = prediction == QUARANTINED, prediction == self.labels[start:stop, None]
        # A chunk that is missing reads as the fill value: no rank, no margin, no reason.
        whole = ((rank < 0) == left_out) & (np.isnan(margin) == left_out) & ((reason != "")[:, None] == left_out)
        # One of another block does not go with the others.
        alike = ((rank == 0) == right) & ~np.where(right, margin < 0, margin > 0)
        return bool((whole & alike).all())

    def changed(self, start: int, stamps: Sequence[int]) -> int:
        """Return how many pictures of a block have another stamp than they had when it was written."""
        if "stamp" not in self._group:
            return 0
        now = np.array(stamps, dtype=np.int64)
        try:
            then = np.asarray(self._array("stamp")[start : start + len(now)])
        except (ValueError, RuntimeError):  # its checksum does not hold
            return len(now)
        return int(((now != UNKNOWN) & (then != now)).sum())

    def write(
        self, start: int, scores: Score, quarantined: Mapping[int, str], stamps: Sequence[int] | None = None
    ) -> None:
        """Write a whole block: scores of [n, K+2] pairs, row by row. Raises `OSError` where it cannot be written.

        `prediction` comes last, and what there was goes first: it says that the block is done. `stamps` are what
        `changed` compares.
        """
        stop = self.end(start)
        shape = (stop - start, len(self.occluders))
        prediction, rank, margin = (part.reshape(shape).numpy().copy() for part in scores)
        reasons = np.full(shape[0], "", dtype=object)
        if quarantined:
            rows = list(quarantined)
            prediction[rows], rank[rows], margin[rows] = QUARANTINED, QUARANTINED, np.nan
            reasons[rows] = list(quarantined.values())
        with naming(self.path):
            self._array("prediction")[start:stop] = NOT_DONE
            self._array("reason")[start:stop] = reasons  # all empty: removes what an earlier attempt left
            if stamps is not None and "stamp" in self._group:
                self._array("stamp")[start:stop] = np.array(stamps, dtype=np.int64)
            self._array("rank")[start:stop] = rank.astype(np.int32)
            self._array("margin")[start:stop] = margin
            self._array("prediction")[start:stop] = prediction.astype(np.int32)

    def _reasons(self, start: int, stop: int) -> list[str]:
        try:
            return [str(reason) for reason in self._array("reason")[start:stop]]  # type: ignore[union-attr]
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self.path}: reasons are damaged ({error}); run the same gfo-eval again") from error

    def readable(self) -> NDArray[np.bool_]:
        """Return which pictures are not quarantined, bool [N]."""
        return np.array([not reason for reason in self._reasons(0, len(self))], dtype=bool)

    def quarantined(self, starts: Sequence[int] | None = None) -> list[Quarantined]:
        """Return the pictures that are no pictures, of all blocks or of those that start here."""
        found: list[Quarantined] = []
        for start in [0] if starts is None else starts:
            stop = len(self) if starts is None else self.end(start)
            reasons = zip(self.paths[start:stop], self._reasons(start, stop), strict=True)
            found += [Quarantined(path, why) for path, why in reasons if why]
        return found


def _describe(path: Path, run: Run) -> None:
    """Write the run and the checksum into the attributes of the store at `path`, all at once."""
    facts = json.loads((path / _FACTS).read_bytes())
    facts["attributes"] |= {"run": plain(run), "data_root": run.data_root}
    facts["attributes"].pop(_CHECKSUM, None)
    facts["attributes"][_CHECKSUM] = checksum(facts)
    with atomic_path(path / _FACTS) as partial:
        partial.write_text(json.dumps(facts, indent=2), encoding="ascii")


def _check_facts(path: Path) -> None:
    """Raise `ValueError` unless `zarr.json` is what was written; without a checksum, from an older version, it passes.

    Then it holds no other attribute: otherwise damage to the checksum's name would be taken for its absence.
    """
    facts = json.loads((path / _FACTS).read_bytes())
    stated = facts["attributes"].pop(_CHECKSUM, None)
    if stated is None and not set(facts["attributes"]) <= set(_ATTRIBUTES):
        raise ValueError(f"attributes are {', '.join(facts['attributes'])}")
    if stated is not None and stated != checksum(facts):
        raise ValueError(f"the checksum of {_FACTS} does not match")


_CODECS = [ZstdCodec(level=1), Crc32cCodec()]
