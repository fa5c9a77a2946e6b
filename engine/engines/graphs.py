"""The graph that an in-graph engine opens: an artefact's own file, or a classifier's, exported once into the cache.

The bank is an input of a cached graph, so that another ε, seed or bank rebuilds nothing. What does change the graph is
in its key: model, weights, preprocessing, precision, form, and the versions of all that took part.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ...export.cache import cache_dir
from ...export.classifier import FrozenClassifier
from ...export.files import atomic_path, usual_mode
from ...export.manifest import file_facts
from ...export.onnx_graph import GRAPH_VERSION, OPSETS, bare_network, save_graph
from ...export.tensorrt.plan import bare_graph

_EXPORTERS = ("torch", "onnx", "onnxscript", "gfo")
_FILE, _SUMS = "model.onnx", "files.json"


@dataclass(frozen=True)
class Graph:
    """An ONNX file, and where an engine may keep what it compiles from it: None where nothing is kept."""

    path: Path
    compiled: Path | None


def graph_key(classifier: FrozenClassifier, precision: str, form: str) -> str | None:
    """What a graph is cached under; None for a network whose code is the user's, which may change under its name."""
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
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def cached_graph(
    classifier: FrozenClassifier, precision: str, form: str, write: Callable[[Path], object], scratch: Path
) -> Graph:
    """The graph of that form, written by `write(path)` unless the cache has it.

    Parameters
    ----------
    form
        What `write` makes, as `occluded` or `bare`: part of the key.
    scratch
        A folder for a graph that is not kept.
    """
    key = graph_key(classifier, precision, form)
    if key is None:
        path = scratch / _FILE
        write(path)
        return Graph(path, None)
    folder = cache_dir() / "graphs" / key
    drop_damaged(folder)
    if not (folder / _FILE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=folder.parent))
        try:
            write(partial / _FILE)
            note_files(partial)
            usual_mode(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except OSError:
            if not (folder / _FILE).is_file():  # else another process was faster, and its file is the same
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Graph(folder / _FILE, folder)


def bare_file(classifier: FrozenClassifier, precision: str, layout: str, scratch: Path) -> Graph:
    """The network alone, which takes `pictures` as `NCHW` or `NHWC`."""
    make, form = {"NCHW": (bare_network, "bare"), "NHWC": (bare_graph, "bare, channels last")}[layout]
    own = scratch / layout
    own.mkdir(exist_ok=True)
    return cached_graph(classifier, precision, form, lambda path: save_graph(make(classifier, precision), path), own)


def note_files(folder: Path) -> None:
    """Remember the hashes of what a folder of the cache holds now: engines do not check what they read."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != _SUMS)
    with atomic_path(folder / _SUMS) as partial:
        partial.write_text(json.dumps(file_facts(folder, names)))


def drop_damaged(folder: Path) -> None:
    """Remove a folder of the cache whose files are not those that were noted; what is removed is made again."""
    if not folder.is_dir():
        return
    try:
        noted = json.loads((folder / _SUMS).read_text())
        whole = file_facts(folder, list(noted)) == noted
    except (OSError, ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
