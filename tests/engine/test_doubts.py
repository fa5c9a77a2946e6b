"""Accuracies that say that something is wrong, where nothing fails."""

from __future__ import annotations

import pytest

from gfo.engine.doubts import FirstAnswers, accuracy_doubt


@pytest.mark.parametrize(
    ("accuracy", "outputs", "doubtful"),
    [(0.0011, 1000, True), (0.0021, 1000, False), (0.19, 10, True), (0.2, 10, False), (0.1, 5, False)],
)
def test_a_clean_accuracy_near_chance_is_doubtful(accuracy: float, outputs: int, doubtful: bool) -> None:
    """As with a class map that is shifted by one."""
    line = accuracy_doubt(accuracy, outputs)
    assert (line is not None) == doubtful
    assert line is None or f"chance is {1 / outputs:.4f}: check the class map" in line


@pytest.mark.parametrize(("accuracy", "doubtful"), [(0.37, True), (0.39, False), (0.9, False)])
def test_a_clean_accuracy_below_half_of_what_the_authors_report_is_doubtful(accuracy: float, doubtful: bool) -> None:
    """As with a mean and std in 0 to 255."""
    line = accuracy_doubt(accuracy, 1000, published=0.76)
    assert (line is not None) == doubtful
    assert line is None or "clean accuracy is 0.3700, the authors of the weights report 0.7600: check" in line


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([(0.0, 19)], None),
        ([(0.0, 19), (0.0, 1)], "0.0000"),
        ([(0.0, 10), (0.1, 10), (0.0, 100)], "0.0500"),  # said once
        ([(0.0, 10), (0.4, 10), (0.0, 100)], None),  # judged once
        ([(0.5, 64)], None),
    ],
)
def test_first_answers_are_judged_once_when_there_are_enough(
    answers: list[tuple[float, int]], said: str | None
) -> None:
    lines: list[str] = []
    first = FirstAnswers(10, lines.append)
    for accuracy, pictures in answers:
        first.add(accuracy, pictures)
    assert [f"clean accuracy is {said}, chance is 0.1000" in line for line in lines] == ([] if said is None else [True])
