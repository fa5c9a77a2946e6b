"""What may be asked of a sample, and what is refused in one line."""

from __future__ import annotations

import pytest

from gfo.engine.sampling.spec import Claim, SamplingSpec, parse_claims, parse_spec, parse_until
from gfo.export.errors import InputError


def test_a_single_number_is_for_every_cell() -> None:
    assert parse_until("0.01") == dict.fromkeys(("matched", "unmatched", "matched/clean", "unmatched/clean"), 0.01)


def test_cells_may_have_numbers_of_their_own() -> None:
    assert parse_until("matched=0.02, unmatched/clean=0.01") == {"matched": 0.02, "unmatched/clean": 0.01}


def test_claims_are_read_and_shown_alike() -> None:
    claims = parse_claims("matched<=0.25, unmatched/clean >= 0.7")
    assert claims == (Claim("matched", True, 0.25), Claim("unmatched/clean", False, 0.7))
    assert list(map(str, claims)) == ["matched<=0.25", "unmatched/clean>=0.7"]


def test_a_bound_that_is_the_cell_is_met() -> None:
    for value in (0.3 - 1e-16, 0.3, 0.30000000000000004):
        assert Claim("matched", True, 0.3).decided(value, value)
        assert Claim("matched", False, 0.3).decided(value, value)


def test_unmatched_pairs_need_two_classes() -> None:
    parse_spec("0.01", "matched<=0.5", None).check_classes(1)
    for until, claim in (("unmatched=0.01", None), ("0.01", "unmatched/clean>=0.5")):
        parse_spec(until, claim, None).check_classes(2)
        with pytest.raises(InputError, match="single class"):
            parse_spec(until, claim, None).check_classes(1)


@pytest.mark.parametrize(
    ("bounds", "at_most", "at_least"),
    [((0.1, 0.2), True, False), ((0.4, 0.5), False, True), ((0.2, 0.4), None, None), ((0.1, 0.3), True, None)],
)
def test_a_claim_is_decided_once_the_bounds_are_on_one_side(
    bounds: tuple[float, float], at_most: bool | None, at_least: bool | None
) -> None:
    assert Claim("matched", True, 0.3).decided(*bounds) is at_most
    assert Claim("matched", False, 0.3).decided(*bounds) is at_least


@pytest.mark.parametrize("text", ["", "x", "matched=", "noise=0.1", "matched=0.1,matched=0.2", "0.01,0.02"])
def test_bad_widths_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--until"):
        parse_until(text)


@pytest.mark.parametrize("text", ["", "matched", "matched<0.2", "matched=0.2", "noise<=0.1", "matched<=x"])
def test_bad_claims_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--claim"):
        parse_claims(text)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({}, "--until, --claim"),
        ({"until": {"matched": 0.0}}, "--until matched=0"),
        ({"until": {"clean": 0.1}}, "--until clean"),
        ({"claims": (Claim("matched", True, 25.0),)}, "--claim matched<=25"),
        ({"until": {"matched": float("nan")}}, "--until matched=nan"),
        ({"claims": (Claim("matched", True, -0.1),)}, "--claim matched<=-0.1"),
        ({"claims": (Claim("matched", True, float("nan")),)}, "--claim matched<=nan"),
        ({"claims": (Claim("matched", True, 0.1),) * 2}, "twice"),
        ({"until": {"matched": 0.1}, "max_pairs": 999}, "--max-pairs 999"),
    ],
)
def test_what_cannot_be_reached_is_refused(how: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        SamplingSpec(**how)  # type: ignore[arg-type]
