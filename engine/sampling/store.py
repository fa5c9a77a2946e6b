"""The answers to sampled pairs, in the order in which they were drawn: `RUN/sample/pairs.zarr`.

A group for each cell has arrays over `pair`: `image` and `row` say which pair was drawn, `prediction`, `rank` and
`margin` what the network answered. A chunk is what is evaluated between two looks. Arrays are as long as the cell has
pairs; chunks that were never drawn are no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from ...export.errors import InputError
from ...export.files import atomic_folder, naming
from .drawing import LOOK
from .order import Ints
from .strata import StratumName

if TYPE_CHECKING:  # answers are read without PyTorch
    from ...kernels.score import Score

PAIRS: Final = "pairs.zarr"
_NOT_DONE, _NO_ROW = -1, -2  # row −1 is no occluder
_ARRAYS: Final = {
    "image": ("int64", _NOT_DONE),
    "row": ("int32", _NO_ROW),
    "rank": ("int32", _NOT_DONE),
    "margin": ("float32", np.nan),
    "prediction": ("int32", _NOT_DONE),  # the last one: it says that a chunk is done
}


class PairStore:
    """`pairs.zarr`, created or opened.

    Parameters
    ----------
    folder
        That holds it.
    totals
        Pairs of each cell.
    facts
        What a new one is of: attributes of the group.
    writable
        Whether to create it if it is not there.

    Raises
    ------
    InputError
        It is not there, is damaged, or was drawn from other pairs.
    """

    def __init__(
        self,
        folder: Path,
        totals: Mapping[StratumName, int],
        facts: Mapping[str, str | None] = MappingProxyType({}),
        *,
        writable: bool = True,
    ) -> None:
        self.path = folder / PAIRS
        if writable and not self.path.exists():
            with atomic_folder(self.path) as partial:
                _create(partial, totals, facts)
        try:
            self._group = zarr.open_group(self.path, mode="r+" if writable else "r")
            found = {name: {self._array(name, array).shape[0] for array in _ARRAYS} for name in totals}
        except (KeyError, ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
            raise _damaged(self.path, error) from error
        if found != {name: {total} for name, total in totals.items()}:
            raise InputError(
                f"{self.path}: was drawn from other pairs than there are now, as pictures have changed; remove it, and "
                "the same command draws again"
            )

    @staticmethod
    def facts(folder: Path) -> dict[str, Any] | None:
        """Return what `folder / PAIRS` is of; None where there is none. Raises `InputError` where it is damaged."""
        path = folder / PAIRS
        if not path.exists():
            return None
        try:
            return dict(zarr.open_group(path, mode="r").attrs)
        except (KeyError, ValueError, TypeError, RuntimeError, FileNotFoundError) as error:
            raise _damaged(path, error) from error

    def _array(self, stratum: str, name: str) -> zarr.Array[Any]:
        array = self._group[f"{stratum}/{name}"]
        if not isinstance(array, zarr.Array):
            raise KeyError(name)
        return array

    def answers(self, stratum: StratumName, start: int, images: Ints, rows: Ints) -> NDArray[np.int32] | None:
        """Return the predictions for pairs from the `start`-th drawn on, int32 [n]; None unless all are there, whole.

        `images` are places in the store of the run, and `rows` those of its bank. Raises `InputError` if other pairs
        were drawn.
        """
        part = slice(start, start + len(images))
        try:
            predictions = np.asarray(self._array(stratum, "prediction")[part])
            kept = {name: np.asarray(self._array(stratum, name)[part]) for name in ("image", "row")}
            if bool(
                (predictions == _NOT_DONE).any() or (kept["image"] == _NOT_DONE).any() or (kept["row"] == _NO_ROW).any()
            ):
                return None
        except (ValueError, RuntimeError):  # a chunk fails its checksum: it is evaluated and written again
            return None
        if not (np.array_equal(kept["image"], images) and np.array_equal(kept["row"], rows)):
            raise _damaged(self.path, "it holds other pairs than are drawn")
        return predictions

    def write(self, stratum: StratumName, start: int, images: Ints, rows: Ints, scores: Score) -> None:
        """Write the answers to pairs from the `start`-th drawn on, whole chunks. Raises `OSError` if that fails."""
        values = {"image": images, "row": rows, **scores._asdict()}
        with naming(self.path):
            for name in _ARRAYS:
                self._array(stratum, name)[start : start + len(images)] = np.asarray(values[name])


def _damaged(path: Path, error: object) -> InputError:
    return InputError(f"{path}: is damaged ({error}); remove it, and the same command draws the same pairs")


def _create(path: Path, totals: Mapping[StratumName, int], facts: Mapping[str, str | None]) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes=dict(facts))
    for stratum, total in totals.items():
        for name, (dtype, fill) in _ARRAYS.items():
            group.create_array(
                f"{stratum}/{name}",
                shape=(total,),
                chunks=(min(LOOK, max(total, 1)),),
                dtype=dtype,
                fill_value=fill,
                dimension_names=("pair",),
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                chunk_key_encoding={"name": "default", "separator": "."},
            )
