"""Graphs that engines open: the file of an artefact, or a classifier's, exported once into the cache.

The bank is an input of a cached graph, so that another ε, seed or bank rebuilds nothing. The key holds whatever changes
the graph: model, weights, preprocessing, precision, form, and the versions of the exporting packages.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ...export.artefact import Artefact
from ...export.cache import cache_dir, key
from ...export.classifier import INT8, FrozenClassifier
from ...export.errors import InputError
from ...export.files import atomic_folder
from ...export.formats import FORMATS
from ...export.manifest import file_facts
from ...export.onnx_graph import (
    GRAPH_VERSION,
    OPSETS,
    Gather,
    bare_network,
    occluded_graph,
    save_graph,
)
from ...export.records import save_record, unsealed
from ...export.subject import Subject
from ...export.tensorrt.plan import bare_graph

_EXPORTERS = ("torch", "onnx", "onnxscript", "gfo")
_FILE, _SUMS = "model.onnx", "files.json"


@dataclass(frozen=True)
class Graph:
    """An ONNX file, and the folder where an engine may keep what it compiles from it (None: nothing is kept)."""

    path: Path
    compiled: Path | None


def graph_key(classifier: FrozenClassifier, precision: str, form: str) -> str | None:
    """Return the cache key of a graph; None for a user's own network, whose code may change under the same name."""
    if not classifier.origin:
        return None
    facts = {
        "origin": classifier.origin,
        "model": classifier.model,
        "weights": classifier.weights_hash,
        "preprocessing": classifier.preprocessing.to_dict(),
        "precision": precision,
        "opset": OPSETS[precision],
        "form": form,
        "graph": GRAPH_VERSION,
        "versions": {name: version(name) for name in _EXPORTERS},
    }
    return key(facts | {"int8": classifier.int8_network().key} if precision == INT8 else facts)


def cached_graph(
    classifier: FrozenClassifier, precision: str, form: str, write: Callable[[Path], object], scratch: Path
) -> Graph:
    """Return the graph of that form, written by `write(path)` unless the cache has it.

    Parameters
    ----------
    form
        What `write` writes, as `occluded` or `bare`: part of the key.
    scratch
        Folder for a graph that is not kept.
    """
    name = graph_key(classifier, precision, form)
    if name is None:
        path = scratch / _FILE
        write(path)
        return Graph(path, None)
    folder = cache_dir("graphs", name)
    drop_damaged(folder)
    if not (folder / _FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder, accept=(folder / _FILE).is_file) as partial:
            write(partial / _FILE)
            note_files(partial)
    return Graph(folder / _FILE, folder)


def occluded_file(
    subject: Subject, precision: str, gather: Gather, sizes: tuple[int, int, int | None], scratch: Path
) -> Graph:
    """Return the occluded classifier as a graph whose bank is an input, or the file of an artefact, checked.

    Parameters
    ----------
    gather
        See `occluded_graph`; an artefact has its own.
    sizes
        S, C and the rows of the embedded bank, as `Format.check` takes them.
    scratch
        Folder for a graph that is not kept.
    """
    if isinstance(subject, Artefact):
        FORMATS[subject.format]().check(subject.path, sizes, subject.manifest.files)
        return Graph(subject.path, cache_dir("artefacts", subject.key))
    assert isinstance(subject, FrozenClassifier)

    def write(path: Path) -> None:
        save_graph(occluded_graph(subject, precision, None, gather=gather), path)

    return cached_graph(subject, precision, f"occluded, gather {gather}", write, scratch)


def bare_file(classifier: FrozenClassifier, precision: str, layout: str, scratch: Path) -> Graph:
    """Return the graph of the bare network, which takes `pictures` as `NCHW` or `NHWC`."""
    make, form = {"NCHW": (bare_network, "bare"), "NHWC": (bare_graph, "bare, channels last")}[layout]
    own = scratch / layout
    own.mkdir(exist_ok=True)
    return cached_graph(classifier, precision, form, lambda path: save_graph(make(classifier, precision), path), own)


def note_files(folder: Path) -> None:
    """Record the hashes of the files in a folder of the cache: engines do not check what they read."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != _SUMS)
    save_record(folder / _SUMS, file_facts(folder, names))


def drop_damaged(folder: Path) -> None:
    """Remove a folder of the cache whose files differ from the record; they are then made again.

    Raises
    ------
    InputError
        It cannot be removed.
    """
    if not folder.is_dir() or _as_noted(folder, folder / _SUMS):
        return
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it, too
    if folder.is_dir() and not _as_noted(folder, folder / _SUMS):
        raise InputError(f"{folder}: is damaged and cannot be removed; remove it, or set GFO_CACHE to another folder")


def _as_noted(folder: Path, record: Path) -> bool:
    try:
        noted, sealed = unsealed(record.read_bytes())
        return sealed and file_facts(folder, list(noted)) == noted
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def note_file(path: Path) -> None:
    """Record the hash of one file of the cache beside it, for `is_as_noted`."""
    save_record(_record_of(path), file_facts(path.parent, [path.name]))


def is_as_noted(path: Path) -> bool:
    """Return whether a file of the cache is there, and is what `note_file` has recorded."""
    return path.is_file() and _as_noted(path.parent, _record_of(path))


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
