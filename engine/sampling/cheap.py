"""The control variate of a certificate: what the answers of a full run say of those in fp32, pair by pair."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..evaluation.store import RunStore
from ..progress import Progress, no_progress
from .control import Ridge
from .order import Ints
from .strata import Floats, Population, Stratum, StratumName

# An answer differs where its margin is near 0. Ramps of these widths, in standard deviations of the clean margin, let
# the regression find out how near: bf16 moves a margin by a hundredth of that, int8 by a tenth.
_RAMPS: Final = (0.02, 0.1, 0.5)
_FEATURES: Final = 2 + len(_RAMPS)
_FREE, _PENALTY = 1e-6, 1.0


def _features(right: NDArray[np.bool_], margin: Floats) -> Floats:
    """Return 1, correctness and the ramps of margins in units of their spread, [..., F]."""
    ramps = [np.clip(margin / width, -1, 1) for width in _RAMPS]
    return np.stack([np.ones_like(margin), right.astype(float), *ramps], axis=-1)


class CheapAnswers:
    """The answers of a full run.

    Parameters
    ----------
    store
        Of the run, whole.
    population
        Its pictures.

    Attributes
    ----------
    means
        Mean over all pairs of a cell of weight × features, [F].
    digest
        Of all answers that the means are of, `sha256:…`.

    Raises
    ------
    InputError
        A block is missing or damaged.
    """

    def __init__(self, store: RunStore, population: Population, progress: Progress = no_progress) -> None:
        self._store, self._population = store, population
        self._scale = float(population.margin.std()) or 1.0
        self.means: dict[StratumName, Floats] = {name: np.zeros(_FEATURES) for name in population.strata}
        digest = hashlib.sha256()
        # Features of the pairs asked for so far, by number of picture and column, ascending.
        self._known, self._values = np.zeros(0, np.int64), np.zeros((0, _FEATURES))
        with progress.task("answers read", len(population)) as bar:
            for start in store.starts():
                first, last = np.searchsorted(population.pictures, [start, store.end(start)])
                if first < last:
                    self._count(np.arange(first, last), digest)
                    bar.advance(int(last - first))
        for name, stratum in population.strata.items():
            self.means[name] /= max(stratum.total, 1)
        self.digest = f"sha256:{digest.hexdigest()}"

    def _count(self, pictures: Ints, digest: hashlib._Hash) -> None:
        predictions, margins = self._read(pictures)
        for values in (predictions, margins):
            digest.update(np.ascontiguousarray(values).tobytes())
        features = self._features_of(pictures, predictions, margins)
        own = self._population.own[pictures]
        for name, stratum in self._population.strata.items():
            if name == "clean":
                weights, found = stratum.by_picture[pictures], features[:, 0]
            else:
                weights = stratum.by_picture[pictures, None] * stratum.by_row
                weights = np.where((np.arange(self._population.rows) == own[:, None]) == stratum.matched, weights, 0)
                found = features[:, 1:]
            self.means[name] += np.tensordot(weights, found, axes=weights.ndim)

    def _read(self, pictures: Ints) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Read predictions and margins of pictures within a block, clean and under the bank: [n, K + 1] each."""
        places = self._population.pictures[pictures]
        start, stop = int(places[0]), int(places[-1]) + 1
        own = slice(None, self._population.rows + 1)
        read = (self._store.predictions(start, stop), self._store.margins(start, stop))
        return read[0][places - start, own], read[1][places - start, own]

    def _features_of(self, pictures: Ints, predictions: NDArray[np.int32], margins: NDArray[np.float32]) -> Floats:
        labels = self._store.labels[self._population.pictures[pictures]]
        return _features(predictions == labels[:, None], margins.astype(float) / self._scale)

    def features(self, picture: Ints, row: Ints) -> Floats:
        """Return the features of some pairs, [n, F]."""
        columns = self._population.rows + 1
        keys = picture * columns + row + 1
        self._learn(np.setdiff1d(keys, self._known))
        return self._values[np.searchsorted(self._known, keys)]

    def _learn(self, keys: Ints) -> None:
        """Read the answers to pairs, by ascending numbers."""
        if not len(keys):
            return
        pictures, columns = np.divmod(keys, self._population.rows + 1)
        blocks = self._population.pictures[pictures] // self._store.block
        found: list[Floats] = []
        for own in np.split(np.arange(len(keys)), np.flatnonzero(np.diff(blocks)) + 1):
            several, places = np.unique(pictures[own], return_inverse=True)
            found.append(self._features_of(several, *self._read(several))[places, columns[own]])
        known, values = np.append(self._known, keys), np.concatenate([self._values, *found])
        order = np.argsort(known)
        self._known, self._values = known[order], values[order]

    def right(self, picture: Ints, row: Ints) -> Floats:
        """Return whether the cheap answers to some pairs are right, 1.0 or 0.0, [n]."""
        return self.features(picture, row)[:, 1]

    def accuracy(self, name: StratumName) -> float:
        """Return a cell from the cheap answers to all of its pairs."""
        return float(self.means[name][1])


@dataclass(frozen=True)
class Foreseen:
    """An expectation of correctness from the cheap answer: coefficients [F] of its features."""

    answers: CheapAnswers
    coefficients: Floats

    def of(self, picture: Ints, row: Ints) -> Floats:
        """Return what is expected of some pairs, [n]."""
        return self.answers.features(picture, row) @ self.coefficients

    def mean(self, stratum: Stratum) -> float:
        """Return the mean over all pairs of weight × what is expected."""
        return float(self.answers.means[stratum.name] @ self.coefficients)


class CheapRidge(Ridge[Foreseen]):
    """The regression on the cheap answers."""

    def __init__(self, answers: CheapAnswers) -> None:
        super().__init__(np.array([_FREE, *[_PENALTY] * (_FEATURES - 1)]))
        self._answers = answers

    def design(self, picture: Ints, row: Ints) -> Floats:
        """See `Ridge.design`."""
        return self._answers.features(picture, row)

    def expectation(self, coefficients: Floats) -> Foreseen:
        """See `Ridge.expectation`."""
        return Foreseen(self._answers, coefficients)
