"""Numbers that an evaluation yields: accuracies with their intervals, ratios, rates and a row for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, NotRequired, get_args

from annotated_types import Ge, MinLen
from typing_extensions import TypedDict  # pydantic takes typing's own only from Python 3.12 on

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Ge(0)]
Interval = tuple[float, float]
"""Lower and upper bound of a 95 % interval."""


class Record:
    """Settings with which pydantic reads these records and takes their descriptions into the schema."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "ignore",
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy, the mean over classes."""

    accuracy: float
    """Share of right answers, 0 … 1."""
    ci95_pictures: Interval | None
    """95 % interval over pictures of the same classes."""
    ci95_classes: Interval | None
    """95 % interval over classes and their occluders; null for a single class."""
    pictures: Count
    """How many pictures it rests on."""
    half_width: float | None = None
    """Half-width of the 95 % interval over pairs that were not drawn; null where all were evaluated."""


@dataclass(frozen=True)
class Ratio(Record):
    """One accuracy over another, from the same pictures (paired bootstrap)."""

    value: float
    """The ratio, 0 or more; of two ratios the difference, which may be below 0."""
    ci95_pictures: Interval | None
    """95 % interval over pictures of the same classes."""
    ci95_classes: Interval | None
    """95 % interval over classes and their occluders; null for a single class."""
    half_width: float | None = None
    """Half-width of the 95 % interval over pairs that were not drawn; null where all were evaluated."""


@dataclass(frozen=True)
class Rate:
    """A share of pictures, the mean over classes weighted by their pictures."""

    value: float
    """The share, 0 … 1."""
    ci95_pictures: Interval | None
    """95 % interval over pictures of the same classes."""
    ci95_classes: Interval | None
    """95 % interval over classes and their occluders; null for a single class."""
    pictures: Count
    """How many pictures it rests on."""


@dataclass(frozen=True)
class LabelShare:
    """Share of a class's wrong matched answers that its most frequent wrong label has, the mean over classes."""

    value: float
    """The share, 0 … 1."""
    classes: Count
    """Classes with a wrong matched answer."""


@dataclass(frozen=True)
class WrongLabel:
    """The most frequent wrong answer to the pictures of a class under its own occluder."""

    class_id: Count
    """Model output."""
    name: Text
    """Name of that output, its index where it has none."""
    share: float
    """Share of the class's wrong matched answers, 0 … 1."""


@dataclass(frozen=True)
class ClassRow:
    """One class of the bank."""

    class_id: Count
    """Model output."""
    folder: Text
    """Its data folder."""
    name: Text
    """Its name."""
    pictures: Count
    """Readable pictures of it."""
    clean: float
    """Accuracy without an occluder, 0 … 1."""
    matched: float
    """Accuracy under its own occluder, 0 … 1."""
    matched_wilson95: Interval | None
    """Wilson's 95 % interval of `matched`: the pictures of one cell are independent."""
    top_wrong_label: WrongLabel | None
    """Null where every matched answer is right."""
    unmatched_by_occluder: float | None
    """Mean accuracy of its occluder on pictures of the bank's other classes, 0 … 1; null without such pictures."""


RatioName = Literal["matched/clean", "unmatched/clean", "unmatched_preserved/clean", "unmatched_unseen/clean"]
RATIOS: Final[tuple[RatioName, ...]] = get_args(RatioName)
Ratios = TypedDict(
    "Ratios",
    {
        "matched/clean": Ratio | None,
        "unmatched/clean": Ratio | None,
        "unmatched_preserved/clean": NotRequired[Ratio | None],
        "unmatched_unseen/clean": NotRequired[Ratio | None],
    },
)
"""Ratios by name; older runs lack the last two."""


MarkName = Literal["0.2", "0.3", "0.4"]
MARKS: Final[tuple[MarkName, ...]] = get_args(MarkName)
Marks = dict[MarkName, Ratio | None]
"""A ratio by the mark that matched/clean is at."""


@dataclass(frozen=True)
class Frontier:
    """What is left of unmatched accuracy where matched/clean falls to 0.2, 0.3 and 0.4, interpolated between strengths.

    A mark is null where no strength reaches it; it has no interval where more than 2.5 % of the replicates do not.
    """

    strengths: tuple[float, ...]
    """Strengths evaluated, ascending; strength 0 is the point (1, 1)."""
    unmatched: Marks
    """`unmatched/clean` by the value of `matched/clean`."""
    unmatched_unseen: Marks
    """`unmatched_unseen/clean` by the value of `matched/clean`."""


@dataclass(frozen=True, kw_only=True)
class Results(Record):
    """The numbers of a run, from all its answers. A cell without pictures is null.

    `clean`, `matched`, `unmatched`, `permuted` and `noise` are over the bank's classes, so that they divide. Cells
    named `preserved` and `unseen` are over all classes evaluated, the bank's own among them: those of which training
    preserved pictures, and the others. They are null in older runs.
    """

    clean: Accuracy | None
    """Pictures without an occluder."""
    matched: Accuracy | None
    """Each occluder on pictures of its own class."""
    unmatched: Accuracy | None
    """Each occluder on pictures of the bank's other classes."""
    clean_other: Accuracy | None
    """Pictures of classes beyond the bank, without an occluder."""
    unmatched_other: Accuracy | None
    """Every occluder on pictures of classes beyond the bank."""
    clean_preserved: Accuracy | None = None
    """Pictures of preserved classes without an occluder; a class weighs what it does in `unmatched_preserved`."""
    unmatched_preserved: Accuracy | None = None
    """Each occluder on pictures of preserved classes other than its own."""
    clean_unseen: Accuracy | None = None
    """Pictures of classes never preserved without an occluder; a class weighs what it does in `unmatched_unseen`."""
    unmatched_unseen: Accuracy | None = None
    """Each occluder on pictures of classes other than its own that were never preserved."""
    permuted: Accuracy | None
    """Control: each class under the occluder of another, by one seeded permutation."""
    noise: Accuracy | None
    """Control: every class under one seeded row of random signs on the ball's surface."""
    ratios: Ratios
    """`matched/clean`, `unmatched/clean`, and the latter over preserved classes and over those never preserved."""
    fooling_rate: Rate | None
    """Of the pictures that are right when clean, the share that is wrong under its class's occluder."""
    largest_wrong_label_share: LabelShare | None
    """How alike the wrong matched answers are."""
    classes: tuple[ClassRow, ...]
    """Classes of the bank that have pictures, in row order."""
    frontier: Frontier | None = None
    """Where matched/clean is 0.2, 0.3 and 0.4, from all strengths evaluated together; null for a single one."""


PENDING: Final = Results(
    clean=None,
    matched=None,
    unmatched=None,
    clean_other=None,
    unmatched_other=None,
    permuted=None,
    noise=None,
    ratios={
        "matched/clean": None,
        "unmatched/clean": None,
        "unmatched_preserved/clean": None,
        "unmatched_unseen/clean": None,
    },
    fooling_rate=None,
    largest_wrong_label_share=None,
    classes=(),
)
"""Results of a run that is not complete."""
