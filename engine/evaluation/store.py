"""The labelled results of one run: a zarr group that `xarray.open_zarr` opens, written whole blocks at a time.

Dimensions `image` and `occluder`; arrays `prediction`, `rank`, `margin`. A chunk is a block of pictures under every
occluder, checksummed. A file is a shard, one block or more: a large run has hundreds of files, not hundreds of
thousands. It is written whole or not at all. Fill value −1 = not done, −2 = quarantined. The group's `zarr.json`, which
describes the arrays and the run, has its checksum among its attributes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from ...export.errors import InputError
from ...export.files import alone, atomic_folder, atomic_path, naming, remove_abandoned, remove_old_partials
from ...export.records import checksum
from .summary import STORE, Quarantined, Run, plain, read_run_record

if TYPE_CHECKING:  # a store is read without PyTorch
    from ...kernels.score import Score

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
_SHARDS = 320
"""Most files of an array."""
# A shard's index is at its end: offset and length of each chunk, or all ones, and a checksum of 4 bytes.
_ENTRY, _NO_CHUNK, _INDEX_SUM = np.dtype("<u8"), 2**64 - 1, 4


def block_size(rows: int) -> int:
    """Return the pictures in a block (and a chunk) for a number of occluder rows: a multiple of `READ_TOGETHER`."""
    return min(_MOST, max(1, _BLOCK_PAIRS // rows // READ_TOGETHER) * READ_TOGETHER)


def shard_size(pictures: int, block: int) -> int:
    """Return the pictures in a shard, which is what one worker writes: as few blocks as keep the files few."""
    return block * max(1, math.ceil(pictures / block / _SHARDS))


def shard_starts(pictures: int, shard: int, worker: int, workers: int) -> range:
    """Return the starts of the shards that a worker evaluates: every n-th one from the i-th, for worker i of n.

    Each shard has one worker, as every worker counts from the same list, whatever others have done. With fewer shards
    than workers, some workers have none.
    """
    return range(worker * shard, pictures, workers * shard)


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
    block, shard
        Pictures in a chunk, and in a file, a multiple of it.
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
        prediction = self._array("prediction")
        self.block = prediction.chunks[0]
        self.shard = (prediction.shards or prediction.chunks)[0]  # in an older store a file is a block
        self._stamps = _NO_STAMPS  # the shard that `changed` has read last
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
        sizes: tuple[int, int] | None = None,
    ) -> RunStore:
        """Create an empty store, whole or not at all, with `occluders` for its columns.

        `sizes` are block and shard, if they are to be those of another store. Raises `OSError` where it cannot be
        written.
        """
        with atomic_folder(run_dir / STORE) as partial:
            cls._create(partial, run, paths, labels, fit, occluders, sizes)
        return cls.open(run_dir, writable=True)

    @staticmethod
    def _create(
        path: Path,
        run: Run,
        paths: Sequence[str],
        labels: Sequence[int],
        fit: Sequence[int],
        occluders: Sequence[int],
        sizes: tuple[int, int] | None,
    ) -> None:
        group = zarr.open_group(path, mode="w", zarr_format=3)
        shape = (len(paths), len(occluders))
        block = block_size(shape[1])
        block, shard = sizes or (block, shard_size(shape[0], block))
        chunks, shards = (block, shape[1]), (shard, shape[1])
        for name, dtype, fill in (("prediction", "int32", -1), ("rank", "int32", -1), ("margin", "float32", np.nan)):
            group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                shards=shards,
                dtype=dtype,
                fill_value=fill,
                dimension_names=("image", "occluder"),
                compressors=_CODECS,
                chunk_key_encoding=_KEYS,
            )
        image = {
            "shape": shape[:1],
            "dimension_names": ("image",),
            "compressors": _CODECS,
            "chunk_key_encoding": _KEYS,
        }
        coordinates = {
            "path": np.array(list(paths), dtype=object),
            "label": np.array(labels, dtype=np.int32),
            "fit": np.array(fit, dtype=np.int8),
        }
        for name, values in coordinates.items():
            dtype = str if name == "path" else values.dtype
            fill = "" if name == "path" else -1
            group.create_array(name, dtype=dtype, fill_value=fill, chunks=shape[:1], **image)[:] = values
        for name, dtype, fill in (("stamp", "int64", UNKNOWN), ("reason", str, "")):
            group.create_array(name, dtype=dtype, fill_value=fill, chunks=chunks[:1], shards=shards[:1], **image)
        occluder = group.create_array(
            "occluder",
            shape=shape[1:],
            dtype="int32",
            fill_value=-3,
            dimension_names=("occluder",),
            compressors=_CODECS,
            chunk_key_encoding=_KEYS,
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

    def margins(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read the margins of done pictures, float32 [n, K+2], NaN for quarantined ones; errors as of `predictions`."""
        try:
            return np.asarray(self._array("margin")[start:stop])
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self.path}: margins are damaged ({error}); run the same gfo-eval again") from error

    def end(self, start: int) -> int:
        """Return where the block that starts here ends."""
        return min(start + self.block, len(self))

    def count(self, starts: Iterable[int]) -> int:
        """Return how many pictures are in the blocks that start here."""
        return sum(self.end(start) - start for start in starts)

    def starts(self, worker: int = 0, workers: int = 1) -> list[int]:
        """Return where the blocks of every n-th shard start, from the i-th, for worker i of n."""
        shards = shard_starts(len(self), self.shard, worker, workers)
        return [start for shard in shards for start in range(shard, min(shard + self.shard, len(self)), self.block)]

    def pending(self, starts: Sequence[int] | None = None) -> list[int]:
        """Return which blocks, of all or of those that start here, have no predictions yet.

        The indices of the shards tell; what is in the blocks is not read. `damaged` does so.
        """
        starts = self.starts() if starts is None else starts
        found: list[int] = []
        for shard, own in groupby(starts, key=lambda start: start // self.shard):
            written = self._written(shard)
            found += [start for start in own if not written[start // self.block % len(written)]]
        return found

    def _written(self, shard: int) -> NDArray[np.bool_]:
        """Return which blocks of a shard have a chunk of predictions, bool [blocks of a shard]."""
        path, blocks = self._file("prediction", shard), self.shard // self.block
        if self._array("prediction").shards is None:
            return np.array([path.is_file()])
        index = blocks * 2 * _ENTRY.itemsize
        try:
            with path.open("rb") as file:
                file.seek(-index - _INDEX_SUM, os.SEEK_END)
                offsets = np.frombuffer(file.read(index), _ENTRY)[::2]
        except OSError:  # it is not there, or too short
            return np.zeros(blocks, dtype=bool)
        return offsets != _NO_CHUNK

    def _file(self, name: str, shard: int) -> Path:
        array = self._array(name)
        return self.path / name / array.metadata.encode_chunk_key((shard, 0)[: array.ndim])

    def damaged(self, starts: Sequence[int] | None = None) -> list[int]:
        """Read blocks, all or those that start here, and return which of them are not whole.

        Some part of such a block fails its checksum, is missing, or does not go with the others.
        """
        starts = self.starts() if starts is None else starts
        found: list[int] = []
        for _, own in groupby(starts, key=lambda start: start // self.shard):
            blocks = list(own)
            together = blocks[-1] - blocks[0] == (len(blocks) - 1) * self.block
            if not (together and self._whole(blocks[0], self.end(blocks[-1]))):
                found += [start for start in blocks if not self._whole(start, self.end(start))]
        return found

    def _whole(self, start: int, stop: int) -> bool:
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
        now, first, array = np.array(stamps, dtype=np.int64), start // self.shard * self.shard, self._array("stamp")
        try:
            if self._stamps[0] != first:
                with contextlib.suppress(ValueError, RuntimeError):
                    self._stamps = first, np.asarray(array[first : first + self.shard])
            if self._stamps[0] == first:
                then = self._stamps[1][start - first : start - first + len(now)]
            else:
                then = np.asarray(array[start : start + len(now)])
        except (ValueError, RuntimeError):  # a checksum does not hold
            return len(now)
        return int(((now != UNKNOWN) & (then != now)).sum())

    def write(
        self, start: int, scores: Score, quarantined: Mapping[int, str], stamps: Sequence[int] | None = None
    ) -> None:
        """Write whole blocks of a shard: scores of [n, K+2] pairs, row by row. Raises `OSError` if that fails.

        `prediction` comes last, and what there was goes first: it says that a block is done. `stamps` are what
        `changed` compares.
        """
        shape = (len(scores.rank) // len(self.occluders), len(self.occluders))
        stop = start + shape[0]
        prediction, rank, margin = (part.reshape(shape).numpy().copy() for part in scores)
        reasons = np.full(shape[0], "", dtype=object)
        self._stamps = _NO_STAMPS
        if quarantined:
            rows = list(quarantined)
            prediction[rows], rank[rows], margin[rows] = QUARANTINED, QUARANTINED, np.nan
            reasons[rows] = list(quarantined.values())
        with naming(self.path), self._alone():
            if len(self.pending(range(start, stop, self.block))) < math.ceil(shape[0] / self.block):
                self._put("prediction", start, np.full(shape, NOT_DONE, np.int32))
            self._put("reason", start, reasons)  # all empty: removes what an earlier attempt left
            if stamps is not None and "stamp" in self._group:
                self._put("stamp", start, np.array(stamps, dtype=np.int64))
            self._put("rank", start, rank.astype(np.int32))
            self._put("margin", start, margin)
            self._put("prediction", start, prediction.astype(np.int32))

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from writing: a shard is read and written anew, and what they add would be lost.

        Where the file system has no locks, it is for the workers of a run to have files of their own, as they do.
        """
        return alone(self.path) if self.shard > self.block else contextlib.nullcontext()

    def _put(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write whole blocks of an array. What cannot be read of their shard is not kept."""
        array, part = self._array(name), slice(start, start + len(values))
        try:
            array[part] = values
        except (ValueError, RuntimeError):
            first, kept = start // self.shard * self.shard, dict[int, Any]()
            for block in range(first, min(first + self.shard, len(self)), self.block):
                with contextlib.suppress(ValueError, RuntimeError):
                    kept[block] = np.asarray(array[block : self.end(block)])
            self._file(name, start // self.shard).unlink(missing_ok=True)
            for block, found in kept.items():
                array[block : self.end(block)] = found
            array[part] = values

    def _reasons(self, start: int, stop: int) -> NDArray[Any]:
        try:
            return np.asarray(self._array("reason")[start:stop])
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self.path}: reasons are damaged ({error}); run the same gfo-eval again") from error

    def readable(self) -> NDArray[np.bool_]:
        """Return which pictures are not quarantined, bool [N]."""
        return self._reasons(0, len(self)) == ""

    def quarantined(self, starts: Iterable[int] | None = None) -> list[Quarantined]:
        """Return the pictures that are no pictures, of all blocks, or of those that start here and are not damaged."""
        if starts is None:
            return self._set_aside(0, self._reasons(0, len(self)))
        found: list[Quarantined] = []
        for shard, own in groupby(starts, key=lambda start: start // self.shard * self.shard):
            with contextlib.suppress(InputError):
                reasons = self._reasons(shard, min(shard + self.shard, len(self)))
                for start in own:
                    found += self._set_aside(start, reasons[start - shard : self.end(start) - shard])
        return found

    def _set_aside(self, start: int, reasons: NDArray[Any]) -> list[Quarantined]:
        return [Quarantined(self.paths[start + i], str(reasons[i])) for i in np.flatnonzero(reasons != "")]


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
_KEYS: Any = {"name": "default", "separator": "."}  # a file beside the others, not in a folder of its own
_NO_STAMPS: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))
