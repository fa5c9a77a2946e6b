"""What a benchmark reports: a `BenchRow` for each thing measured, and the JSON document that holds the rows.

In Python a row is the fields common to all suites plus a typed `facts` of its suite. In JSON it is flat: every row has
the same keys in the same order, null where it lacks them.
"""

from __future__ import annotations

import inspect
import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from ..export.records import ATTRIBUTES, read_record
from .environment import commit, environment

SCHEMA: Final = 1


@dataclass(frozen=True)
class Ratio:
    """A ratio of rates; above 1 is faster.

    Attributes
    ----------
    to
        Name of the row that it is relative to.
    median
        Median rate over that row's; for time to an accuracy, the time of all classes there over that of this row.
    low, high
        The 95% interval of the ratio; None for fewer than three rounds.
    """

    to: str
    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts that only one suite knows of its rows: none, unless it has a class of its own."""


@dataclass(frozen=True, kw_only=True)
class CeilingFacts(Facts):
    """Facts of a network's rate: of the suite `train`, and of those that have more.

    Attributes
    ----------
    ceiling_share
        For `bare` and `train`: FLOP a second of the network's convolutions and products over what a large convolution
        reaches in PyTorch at that precision on that device, in the same rounds (`ceilings.convolution`). A training
        step counts as two forward passes: the gradient with respect to the pictures takes as many FLOP again.
    """

    ceiling_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class PairsFacts(CeilingFacts):
    """Facts of the suites `pairs` and `scaling`, with those of `CeilingFacts`.

    Attributes
    ----------
    to_plain
        Ratio to the plain loop, timed in the same rounds.
    workers
        For `end-to-end`: threads that decode pictures.
    """

    to_plain: Ratio | None = None
    workers: int | None = None


NO_ENGINE = "–"
"""Engine of a row that stands for a whole section."""
DECODED_CACHE = "decoded-cache"
"""What rows call Pillow with `--decoded-cache`."""


@dataclass(frozen=True, kw_only=True)
class LoaderFacts(Facts):
    """Facts of the suite `loaders`.

    Attributes
    ----------
    cores
        CPU cores that the loader may use.
    max_difference, mean_difference
        Distance of its pictures from torchvision's on Pillow, in grey levels.
    """

    cores: int | None = None
    max_difference: int | None = None
    mean_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class KernelFacts(Facts):
    """Facts of the suite `kernels`.

    Attributes
    ----------
    kernel
        The operation.
    bandwidth_share
        Bytes a second, with each input read and each result written once, over what a large copy moves here.
    extra_mb
        Most memory that one call holds beyond what was there before, its result included, MiB.
    max_error, allowed_error
        For a kernel, largest distance of a result from the formula's, and how far apart results may be; None for the
        formula.
    """

    kernel: str
    bandwidth_share: float | None = None
    extra_mb: float | None = None
    max_error: float | None = None
    allowed_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReachFacts(Facts):
    """Facts of the suite `train` on time to an accuracy.

    Attributes
    ----------
    target
        Top-1 accuracy to leave a class on its held-out pictures.
    reached
        How many of the classes got there; the whole time of the others counts.
    clean_accuracy, accuracy
        Mean over classes of the held-out top-1 accuracy without an occluder, and under theirs when it was last judged.
    image_steps
        Number of pictures in all steps; a picture counts in each of its steps.
    seconds
        Time that the training of all classes took, without that of judging.
    """

    target: float
    reached: int
    clean_accuracy: float
    accuracy: float
    image_steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SelfTestFacts(Facts):
    """Facts of an engine that is compared with float64, in the suite `device`; see `doctor.Check`.

    Attributes
    ----------
    max_error, allowed_error
        For an engine, largest |logit − float64 logit| over all pairs, and how large it may be.
    agreement
        Share of pairs with the same top-1 class as in float64.
    """

    max_error: float | None = None
    allowed_error: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoopFacts(Facts):
    """Facts of the suite `loop`.

    Attributes
    ----------
    waits
        How often a call waited for the device.
    """

    waits: int | None = None


@dataclass(frozen=True, kw_only=True)
class StoreFacts(Facts):
    """Facts of the suite `store`.

    Attributes
    ----------
    seconds
        Time that the step took.
    files, bytes_per_pair
        Files of the store after the step, and their bytes for each pair.
    """

    seconds: float | None = None
    files: int | None = None
    bytes_per_pair: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClusterFacts(Facts):
    """Facts of the suite `cluster`.

    Attributes
    ----------
    grown_mb
        By how much the peak memory of this process grew in the last nine tenths of the tasks, MiB.
    """

    grown_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReplayFacts(Facts):
    """Facts of the suite `replay`.

    Attributes
    ----------
    cell
        `clean` (of certificates), `matched` or `unmatched`.
    half_width
        Half-width of the 95% interval that ends a replay; of a confidence sequence None.
    coverage
        Share of the replays whose interval holds the truth; of a sequence, whose bounds held it at every look.
    bias
        Mean of estimate − truth.
    drawn, total
        Pairs that a replay draws on average, and that there are.
    simple
        Pairs that a plain mean of randomly drawn pairs would take.
    """

    cell: str | None = None
    half_width: float | None = None
    coverage: float | None = None
    bias: float | None = None
    drawn: float | None = None
    simple: int | None = None
    total: int | None = None


F_co = TypeVar("F_co", bound=Facts, covariant=True)


@dataclass(frozen=True, kw_only=True)
class BenchRow(Generic[F_co]):
    """One thing that was measured, or could not be. None is unknown, or does not apply.

    Attributes
    ----------
    stage
        `bare`, `pairs`, `end-to-end`, `baseline`, `loader`, `train`, `train-forward`, `train-baseline`, `train-reach`,
        `train-reach-baseline`, `kernel`, `kernel-check`, `loop`, `loop-waiting`, `store-create`, `store-write`,
        `store-pending`, `store-read`, `store-summary`, `cluster-tasks`, `replay`, `replay-sequence`,
        `replay-certificate`; of the suite `device` also `memory-check` and `self-test`.
    engine
        What did the work; for a kernel `reference`, `triton`, or the straightforward formula in `eager` PyTorch or
        through torch's `compile`; for a loop `simulated`, for a store `zarr`, for a cluster `dask`, for
        a replay `sample`.
    precision, model, weights
        `fp32`, `bf16`, …; the model's name; the source of its weights, `random` among them.
    pictures, occluders
        How many of each the work consists of.
    unit
        Unit of the rates: `pairs/s`, `pictures/s`, …; higher is better.
    p20, p50, p80
        Rates that 20%, 50% and 80% of the rounds stay below.
    ratio
        Ratio to another row of the same set.
    peak_rss_mb
        Largest resident memory of the process so far, MiB.
    available, reason
        False where there is no speed, and why.
    device
        `cpu` or `cuda`.
    sizes, data
        What one call takes, and where it comes from.
    passed
        Whether the result is right: a kernel's equals the formula's within rounding, a loader's pictures torchvision's
        within a grey level, an engine's logits PyTorch's (`engine.parity`). A row that is False has no speed.
    rounds
        How often it was timed.
    facts
        What only this row's suite knows.
    """

    stage: str
    engine: str
    precision: str | None = None
    model: str | None = None
    weights: str | None = None
    pictures: int | None = None
    occluders: int | None = None
    unit: str
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    ratio: Ratio | None = None
    peak_rss_mb: float | None = None
    available: bool = True
    reason: str = ""
    device: str | None = None
    sizes: str | None = None
    data: str | None = None
    passed: bool | None = None
    rounds: int | None = None
    facts: F_co


KEYS: Final = (
    *("stage", "engine", "precision", "model", "weights", "pictures", "occluders"),
    *("unit", "p20", "p50", "p80", "ratio", "to_plain", "peak_rss_mb", "available", "reason"),
    *("device", "kernel", "sizes", "data", "passed", "rounds", "ceiling_share", "bandwidth_share", "extra_mb"),
    *("workers", "cores", "max_difference", "mean_difference"),
    *("target", "reached", "clean_accuracy", "accuracy", "image_steps", "seconds"),
    *("waits", "max_error", "allowed_error", "agreement"),
    *("files", "bytes_per_pair", "grown_mb"),
    *("cell", "half_width", "coverage", "bias", "drawn", "simple", "total"),
)
"""Keys of every row in JSON, in order; those of facts that another package's suite adds follow."""


def facts_by_stage() -> Mapping[str, type[Facts]]:
    """Return the facts of each stage's rows, from the suites; a stage that is not listed has none."""
    from .suites import SUITES  # suites import this file

    found: dict[str, type[Facts]] = {}
    for suite in SUITES.classes():
        found = {**suite.facts, **found}  # a stage belongs to the suite that comes first
    return found


def flat(row: BenchRow[Facts]) -> dict[str, Any]:
    """Return the row as JSON has it: all of `KEYS`, then what else its facts hold."""
    known = asdict(row)
    known |= known.pop("facts")
    return {key: known.pop(key, None) for key in KEYS} | known


def flat_record() -> type[Any]:
    """Return the dataclass of a flat row, with the facts of every suite: for reading, and for the schema."""
    kinds = {name: kind for name, kind in typing.get_type_hints(BenchRow).items() if name != "facts"}
    known = tuple(dict.fromkeys(facts_by_stage().values()))
    for name, kind in itertools.chain(*(typing.get_type_hints(facts).items() for facts in known)):
        kinds[name] = kind | kinds.get(name)  # suites may give a key a type each
    defaults = {one.name: one.default for one in fields(BenchRow)}
    columns = [(key, kinds[key], field(default=defaults.get(key))) for key in dict.fromkeys((*KEYS, *kinds))]
    described = [inspect.getdoc(facts) or "" for facts in known]
    text = "\n".join([inspect.getdoc(BenchRow) or "", *(one.partition(ATTRIBUTES)[2] for one in described)])
    return make_dataclass("BenchRow", columns, namespace={"__doc__": text}, frozen=True, kw_only=True)


# ---- the document

R = TypeVar("R")


@dataclass(frozen=True)
class Document(Generic[R]):
    """What `gfo-bench` prints as its last line: rows, and the machine that they are from."""

    schema: Literal[1]
    environment: dict[str, Any]
    rows: list[R]


def document(rows: Sequence[Any], **facts: Any) -> dict[str, Any]:
    """Return everything as plain JSON types.

    Parameters
    ----------
    rows
        `BenchRow`s, or other dataclasses of plain types.
    facts
        Facts that join the environment.
    """
    import torch

    known = {**environment(), "commit": commit(), "threads": torch.get_num_threads(), **facts}
    plain = [flat(row) if isinstance(row, BenchRow) else asdict(row) for row in rows]
    return {"schema": SCHEMA, "environment": known, "rows": plain}


def read_document(path: Path) -> Document[BenchRow[Facts]]:
    """Read what a suite wrote to its `--json` file; keys that rows did not have yet are None.

    Raises
    ------
    InputError
        Not such a document.
    """
    kind = make_dataclass("Document", [("schema", Literal[1]), ("environment", dict), ("rows", list[flat_record()])])
    read = _read(kind, path)
    known = facts_by_stage()
    return Document(read.schema, read.environment, [_with_facts(row, known) for row in read.rows])


def read_rows(kind: type[R], path: Path) -> list[R]:
    """Read the rows of a suite whose rows are a dataclass of its own, as `CompileRow`.

    Raises
    ------
    InputError
        Not such a document.
    """
    return _read(make_dataclass("Document", [("schema", Literal[1]), ("rows", list[kind])]), path).rows


def _read(kind: type[Any], path: Path) -> Any:
    return read_record(kind, path.read_text(), path, "measure again")


def _with_facts(record: Any, known: Mapping[str, type[Facts]]) -> BenchRow[Facts]:
    def part(kind: type[Any]) -> dict[str, Any]:
        return {one.name: getattr(record, one.name) for one in fields(kind) if one.name != "facts"}

    kind = known.get(record.stage, Facts)
    return BenchRow(**part(BenchRow), facts=kind(**part(kind)))
