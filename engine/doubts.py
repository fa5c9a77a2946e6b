"""Doubts about a model's accuracy: lines for the log where nothing fails, but numbers say that something is wrong."""

from __future__ import annotations

from collections.abc import Callable

_FEW = 10  # outputs: with fewer, twice chance is no mean accuracy
_ENOUGH = 20  # pictures, for an accuracy far below what is expected to mean something


def accuracy_doubt(accuracy: float, outputs: int, published: float | None = None) -> str | None:
    """Return a warning where a model recognises hardly anything, as with a class map that is off by one.

    Parameters
    ----------
    accuracy
        Share of right answers to pictures without an occluder, 0 … 1.
    outputs
        Number of outputs of the model.
    published
        Accuracy that the authors of the weights report, where it is known.
    """
    if outputs >= _FEW and accuracy < 2 / outputs:
        expected = f"chance is {1 / outputs:.4f}"
    elif published is not None and accuracy < published / 2:
        expected = f"the authors of the weights report {published:.4f}"
    else:
        return None
    return f"clean accuracy is {accuracy:.4f}, {expected}: check the class map, --mean, --std and the weights"


class FirstAnswers:
    """Counts a model's answers to pictures without an occluder; once there are enough, says what is doubtful."""

    def __init__(self, outputs: int, say: Callable[[str], None]) -> None:
        self._outputs, self._say = outputs, say
        self._right = self._pictures = 0.0
        self._judged = False

    def add(self, accuracy: float, pictures: int) -> None:
        """Add the share of right answers (0 … 1) of so many different pictures."""
        if self._judged:
            return
        self._right += accuracy * pictures
        self._pictures += pictures
        self._judged = self._pictures >= _ENOUGH
        if self._judged and (line := accuracy_doubt(self._right / self._pictures, self._outputs)):
            self._say(line)
