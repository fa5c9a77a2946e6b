"""Records of a run: `Run`, an attribute of its store, and `Summary`, the contents of `summary.json`.

Fields that older versions did not write have defaults; unknown keys are ignored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import MinLen

from ...export.preprocessing import Preprocessing
from ...export.records import load_record, read_record, save_record
from ..data.folders import name_of
from ..data.spec import Split
from .certificate import Certificate
from .results import Count, Record, Results, Text
from .sample import Sample

SUMMARY_FILE: Final = "summary.json"
STORE: Final = "predictions.zarr"
SCHEMA: Final = 1
FIX: Final = "rerun the same gfo-eval to write it again"


def plain(record: Any) -> dict[str, Any]:
    """Return a dataclass as JSON types, keys in the order of its fields. Raises `ValueError` on NaN or infinity."""
    return json.loads(json.dumps(asdict(record), allow_nan=False))


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """Identity of a run: the attribute `run` of `predictions.zarr`, and part of its summary."""

    gfo_version: Text
    """Version that began the run."""
    model: Text
    """`torchvision/<name>`, `timm/<name>`, `python:<module>:<function>` or `gfo/<name>`."""
    num_classes: Count
    """Outputs of the model."""
    weights: Text
    """Name or file of the weights, `random` for seeded ones."""
    weights_hash: Text
    """`sha256:…` of the weights."""
    artefact: str | None = None
    """Key of the exported artefact that ran; null for a model."""
    bank: Text
    """File of the bank, or folder of the artefact that holds it."""
    bank_hash: Text
    """`sha256:…` of the bank: its header and occluders."""
    epsilon: float
    """Radius of the ball that the occluders evaluated lie in, pixel units (0 … 255): the bank's times `strength`."""
    strength: float = 1.0
    """Factor on the bank's occluders."""
    norm: Text
    """Norm of the ball: `linf` or `l2`."""
    split: Split
    """Split of the data that the pictures are from."""
    engine: Text
    """Name of the engine that ran."""
    engine_variant: str | None = None
    """Form of the engine: ONNX Runtime's provider, TensorRT's library, `compiled`; null where it has one form."""
    device: Text
    """`cpu`, or the name of the GPU."""
    precision: Text
    """`fp32`, `bf16` or `fp16`."""
    impl: str | None = None
    """Fused operations around the network: `reference` or `triton`; null in older runs."""
    loader: Text
    """Name of the loader that read the pictures."""
    seed: Count
    """Seed of the noise row, the permutation, the draws and the bootstrap."""
    data_root: Text
    """Folder that the paths of the pictures are relative to."""
    preprocessing: Preprocessing
    """Resize, crop and normalisation of every picture."""
    class_ids: Annotated[tuple[Count, ...], MinLen(1)]
    """Model output of each row of the bank."""
    class_names: dict[str, Text]
    """Name of every class evaluated, by class id."""
    folders: dict[str, Text]
    """Data folder of every class evaluated, by class id."""
    preserved_classes: tuple[Count, ...] = ()
    """Classes of which the bank's training preserved pictures."""
    pictures: Text
    """Which pictures: `all`, `fitted`, `held-out`, `preserved` or `unseen` by the bank."""
    per_class: Count | None
    """Most pictures of each class; null for all."""

    def name_of(self, class_id: int) -> str:
        """Name a class, also one that was not evaluated: a wrong answer can be any output of the model."""
        known = self.class_names.get(str(class_id))
        return known or name_of(class_id, self.num_classes, self.folders)


def read_run_record(facts: Any, path: Path) -> Run:
    """Check the `run` attribute of the store at `path`. Raises `InputError`, which names store and field."""
    return read_record(Run, json.dumps(facts), path, "remove it and evaluate again")


@dataclass(frozen=True)
class Quarantined:
    """A picture that could not be read."""

    path: Text
    """Relative to the data root."""
    reason: Text
    """Error that its reader raised."""


@dataclass(frozen=True)
class Fit:
    """How many pictures the bank's training used, and for what."""

    unseen: Count
    """Not used."""
    fitted: Count
    """Used for gradients."""
    held_out: Count
    """Used to choose among epochs."""
    preserved: Count = 0
    """Of other classes: their answers were to be preserved."""

    @property
    def used(self) -> int:
        """Pictures that training used for anything."""
        return self.fitted + self.held_out + self.preserved


@dataclass(frozen=True, kw_only=True)
class Speed(Record):
    """How fast the last call was that evaluated any pair of the run; of several strengths, all of them together."""

    pairs: Count
    """Pairs that it evaluated."""
    seconds: float
    """Wall-clock time from its first picture to its last answer stored."""
    pairs_per_second: float | None
    """Null where no call evaluated a pair, as after damage to an earlier summary."""
    peak_rss_mb: float | None = None
    """Largest resident memory of the process, MB; null in older runs."""


@dataclass(frozen=True, kw_only=True)
class _Counts(Record):
    read: Count
    """Pictures with answers."""
    quarantined_count: Count
    """Pictures that could not be read."""
    quarantined: tuple[Quarantined, ...]
    """Those pictures; they count in no accuracy."""
    fit: Fit
    """All pictures of the run, by what the bank's training used them for."""
    sample: Sample | None = None
    """How pairs were drawn; null where all were evaluated."""
    certificate: Certificate | None = None
    """What the cells would be in fp32; null where nobody has asked."""


@dataclass(frozen=True, kw_only=True)
class _Head(Record):
    schema: Literal[1]
    """Version of this record."""
    complete: bool
    """Whether every picture is done, or the sampling of pairs has ended; the file is written only then."""


# A dataclass lists the fields of its last base first: this is the order of the file.
@dataclass(frozen=True, kw_only=True)
class Summary(Speed, Results, _Counts, Run, _Head):
    """Identity, counts, results and speed of a run: the contents of `summary.json`.

    Where workers share a run (`--shard`), `evaluate` returns all but the last of them one with `complete` false: it
    counts what is done so far, its results are null, and it is not written.
    """

    @property
    def remaining(self) -> int:
        """Pictures that are not done."""
        return self.fit.unseen + self.fit.used - self.read - self.quarantined_count

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of `summary.json` as JSON types."""
        return plain(self)

    def write(self, folder: Path) -> None:
        """Write `summary.json` into a run's folder, whole or not at all. Raises `OSError`, which names the file."""
        save_record(folder / SUMMARY_FILE, self.to_dict())


def read_summary(path: Path) -> Summary:
    """Read one `summary.json`.

    Raises
    ------
    InputError
        The file is not valid JSON, lacks a field or is not what was written; file and field are named.
    OSError
        The file cannot be read.
    """
    return load_record(Summary, path, FIX)
