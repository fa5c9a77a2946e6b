"""Options as texts."""

from __future__ import annotations

import pytest

from gfo.export.options import whole_number


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_digits_are_a_number(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1_0", "1.0", "1e3", "²", "٣", "x", "1" * 19, "1" * 5000])
def test_anything_else_is_none(text: str) -> None:
    assert whole_number(text) is None
