"""What an export format says of itself. Its modules import nothing heavy before something is written."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError
from ..records import STRICT

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from ..classifier import FrozenClassifier
    from ..onnx_graph import Gather

ONNX_FILE = "model.onnx"


@dataclass(frozen=True)
class ExportConfig:
    """How an artefact is written.

    Attributes
    ----------
    format
        A name of `FORMATS`: `onnx`, `openvino` or `trt`.
    precision
        `fp32`, `bf16`, `fp16` or `int8` for the network; occlusion and logits are float32.
    bank_input
        Leave the bank an input of the graph, for any bank of the model, instead of embedding it.
    batch_size
        Pairs in a call, at least 1; for `trt` the best and largest number of pairs, and of pictures.
    compute_capabilities
        Only for `trt` without a GPU: those of the GPUs that the file is for, as `8.9`; see `choose_targets`.

    Raises
    ------
    InputError
        An unknown precision, or a value out of range. The format is checked when the export begins.
    """

    format: str = "onnx"
    precision: str = "fp32"
    bank_input: bool = False
    batch_size: int = 64
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from ..classifier import GRAPH_PRECISIONS

        if self.precision not in GRAPH_PRECISIONS:
            raise InputError(f"--precision {self.precision}: expected one of {', '.join(GRAPH_PRECISIONS)}")
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size}: expected at least 1")


@dataclass(frozen=True)
class Limits:
    """The sizes, library and GPUs that an engine file was compiled for.

    Attributes
    ----------
    pairs, pictures, rows
        Smallest, best and largest P, B and K + 1; `rows` is None where the bank is embedded.
    library, library_version
        `tensorrt` or `tensorrt_rtx`; an engine file runs on no other version.
    compute_capabilities
        Those of the GPUs that it runs on, as `8.9`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    pairs: tuple[int, int, int]
    pictures: tuple[int, int, int]
    rows: tuple[int, int, int] | None
    library: str
    library_version: str
    compute_capabilities: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """What a format has written.

    Attributes
    ----------
    files
        Names of the files, the one to open first.
    built_with
        Versions of the libraries that the format needed beyond the exporter's own.
    limits, layers
        As those of `Manifest`.
    """

    files: list[str]
    built_with: dict[str, str] = field(default_factory=dict)
    limits: Limits | None = None
    layers: dict[str, int] | None = None


class Format(ABC):
    """A form of the occluded classifier on disk, written from its ONNX graph."""

    first: ClassVar[str]
    """The file that engines open."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Files that must be beside it."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Files that may be beside it."""
    gather: ClassVar[Gather] = "uint8"
    """Type in which the graph repeats pictures for their pairs; see `occluded_graph`."""
    for_gpus: ClassVar[bool] = False
    """Whether files are compiled for certain GPUs and sizes: then they have `Limits`, and GPUs can be asked for."""

    @abstractmethod
    def write(
        self, graph: onnx.ModelProto, folder: Path, classifier: FrozenClassifier, config: ExportConfig
    ) -> Written:
        """Write the files into a folder.

        Parameters
        ----------
        graph
            What `occluded_graph` made of the classifier at the configuration's precision; may be emptied.
        folder
            An empty folder.

        Raises
        ------
        InputError
            The format's library does not take the graph.
        EngineUnavailable
            The library is not installed, or cannot build here.
        """

    def check(  # noqa: B027 (not abstract: the libraries of other formats refuse a damaged file themselves)
        self, path: Path, sizes: tuple[int, int, int | None], files: Collection[str]
    ) -> None:
        """Raise `InputError` unless a file of the format is safe to open; called before a native library opens it.

        Parameters
        ----------
        path
            The file that engines open.
        sizes
            S, C and K + 1 of the bank inside, None where it is an input.
        files
            Names of the artefact's files: those that it may read.
        """

    def bank(self, path: Path) -> NDArray[np.float32] | None:
        """Return the bank inside a file that passed `check`: float32 [K + 1, S, S, 3], the first row zeros.

        None for a format that does not give back what was compiled into it.

        Raises
        ------
        InputError
            The file holds no bank, or is damaged.
        EngineUnavailable
            The format's library is not installed.
        """
        return None


@contextlib.contextmanager
def onnx_file(graph: onnx.ModelProto, folder: Path) -> Iterator[Path]:
    """Yield a checked ONNX file of the graph in `folder`, and remove it with its data after the block."""
    from ..onnx_graph import save_graph

    names = save_graph(graph, folder / ONNX_FILE)
    try:
        yield folder / ONNX_FILE
    finally:
        for name in names:
            (folder / name).unlink()
