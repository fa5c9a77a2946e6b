"""An artefact: the occluded classifier in a folder of its own, for one kind of engine, with its manifest.

`formats` lists the forms; `manifest` describes the folder. With an embedded bank, `fit.safetensors` remembers which
pictures it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .bank import OccluderBank, check_keys
from .bank_header import BankHeader, EmbeddedBank
from .calibration import Calibration
from .classifier import INT8, FrozenClassifier, load_classifier
from .errors import InputError
from .files import atomic_folder, load_tensors, remove_abandoned, save_tensors
from .formats import FORMATS
from .formats.base import ExportConfig
from .int8 import Int8Facts
from .manifest import EMBEDDED, FIT, INPUT, Manifest, Parity, file_facts
from .models.spec import ModelSpec
from .onnx_graph import occluded_graph
from .preprocessing import Preprocessing
from .quantise import quantise
from .records import read_record

_EXPORTERS = ("torch", "onnx", "onnxscript")
_BANK_NOT_VALID = "its bank is not described as expected"


@dataclass(frozen=True)
class Artefact:
    """A folder that `export` wrote, its files found unchanged."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path | str) -> Artefact:
        """Read the manifest and check every file against it.

        Raises
        ------
        InputError
            No artefact, or one whose files are missing or changed; see `Manifest.read`.
        """
        return cls(Path(folder), Manifest.read(Path(folder)))

    @property
    def path(self) -> Path:
        """The file that engines open."""
        return self.folder / FORMATS[self.manifest.format].first

    @property
    def name(self) -> str:
        """The folder; see `Subject.name`."""
        return str(self.folder)

    @property
    def key(self) -> str:
        """SHA-256 over the files' SHA-256: the name under which a compiled form is cached."""
        sums = "".join(self.manifest.files[name]["sha256"] for name in sorted(self.manifest.files))
        return hashlib.sha256(sums.encode()).hexdigest()

    @property
    def format(self) -> str:
        """See `Manifest.format`."""
        return self.manifest.format

    @property
    def exported_precision(self) -> str:
        """See `Manifest.precision`."""
        return self.manifest.precision

    @property
    def parity(self) -> Parity:
        """See `Manifest.parity`."""
        return self.manifest.parity

    @property
    def model(self) -> str:
        """See `FrozenClassifier.model`."""
        return self.manifest.model

    @property
    def weights(self) -> str:
        """See `FrozenClassifier.weights`."""
        return self.manifest.weights

    @property
    def weights_hash(self) -> str:
        """See `FrozenClassifier.weights_hash`."""
        return self.manifest.weights_hash

    @property
    def preprocessing(self) -> Preprocessing:
        """See `FrozenClassifier.preprocessing`."""
        return self.manifest.preprocessing

    @property
    def num_classes(self) -> int:
        """See `FrozenClassifier.num_classes`."""
        return self.manifest.num_classes

    @property
    def accuracy(self) -> None:
        """None: the manifest does not say, see `Subject`."""
        return

    @property
    def doubt(self) -> None:
        """None: the weights were chosen when it was exported, see `Subject`."""
        return

    def embedded_bank(self) -> EmbeddedBank | None:
        """Return the bank inside; None where it is an input.

        Raises
        ------
        InputError
            The manifest's description of the bank, or the file beside it, is not valid.
        """
        if self.manifest.bank == INPUT:
            return None
        header = read_record(
            BankHeader, json.dumps(self.manifest.bank_header), self.folder, "export again", _BANK_NOT_VALID
        )
        try:
            bank = EmbeddedBank(header, str(self.manifest.bank_hash), **load_tensors(self.folder / FIT)[1])
            check_keys(self.folder / FIT, bank.used)
            bank.check_fits(self, self.folder)
        except (ValueError, TypeError, OSError) as error:
            raise InputError(f"{self.folder}: {_BANK_NOT_VALID} ({error}); export again") from error
        return bank

    def read_bank(self) -> OccluderBank:
        """Return the bank inside with its occluders, found to be those of the manifest's hash.

        Raises
        ------
        InputError
            The bank is an input, its description or the file is not valid, or the format does not give it back.
        EngineUnavailable
            The format's library is not installed.
        """
        embedded, layout = self.embedded_bank(), FORMATS[self.format]()
        if embedded is None:
            raise InputError(f"{self.folder}: its bank is an input, none is inside; name the bank's file")
        size = self.preprocessing.input_size
        shape = (1 + len(embedded.class_ids), size, size, 3)
        layout.check(self.path, (size, self.num_classes, shape[0]), self.manifest.files)
        rows = layout.bank(self.path)
        if rows is None:
            raise InputError(f"{self.path}: format {self.format} does not give back the occluders compiled into it")
        occluders = torch.tensor(rows[1:] if rows.shape == shape else ())
        bank = OccluderBank(occluders, embedded.header, **embedded.used)
        if bank.hash != embedded.hash:
            raise InputError(f"{self.folder}: the occluders inside are not those of its manifest; export again")
        return bank


class Export:
    """An export whose inputs have been checked, before anything that takes time; `write` carries it out.

    Attributes
    ----------
    classifier, bank
        What is exported, loaded.
    out
        The folder to write.
    config
        How.
    """

    def __init__(
        self,
        model: ModelSpec | FrozenClassifier,
        bank: OccluderBank | Path | str,
        out: Path,
        config: ExportConfig | None = None,
    ) -> None:
        """Check the inputs; see `export` for the parameters and errors."""
        config = config or ExportConfig()
        _check_format(config)
        remove_abandoned(out)
        if out.exists():
            raise InputError(f"--out {out}: is there already; name a new folder, or remove it")
        self.out = out
        self.config = config
        self.classifier = load_classifier(model) if isinstance(model, ModelSpec) else model
        self.bank = OccluderBank.of(bank, self.classifier)

    def calibrate(self, calibration: Calibration) -> Int8Facts:
        """Give the classifier its int8 form, which an export at `int8` needs. Raises what `quantise` raises."""
        self.classifier = quantise(self.classifier, calibration)
        return self.classifier.int8_network().facts

    def write(self, prove: Callable[[Artefact], object] | None = None) -> Artefact:
        """Write the artefact, have `prove` check it before its folder appears, and return it; see `export`."""
        with atomic_folder(self.out) as partial:
            manifest = self._write(partial)
            if prove is not None:
                prove(Artefact(partial, manifest))
        return Artefact.load(self.out)

    def _write(self, folder: Path) -> Manifest:
        classifier, config = self.classifier, self.config
        int8 = classifier.int8_network() if config.precision == INT8 else None
        layout = FORMATS[config.format]
        embedded = None if config.bank_input else self.bank
        graph = occluded_graph(
            classifier,
            config.precision,
            None if embedded is None else embedded.occluders,
            gather=layout.gather,
            metadata=self._metadata(embedded),
        )
        written = layout().write(graph, folder, classifier, config)
        names = list(written.files)
        if embedded is not None:
            save_tensors(folder / FIT, embedded.stored_keys)
            names.append(FIT)
        manifest = Manifest(
            format=config.format,
            precision=config.precision,
            model=classifier.model,
            weights=classifier.weights,
            weights_hash=classifier.weights_hash,
            preprocessing=classifier.preprocessing,
            num_classes=classifier.num_classes,
            bank=INPUT if embedded is None else EMBEDDED,
            bank_hash=None if embedded is None else embedded.hash,
            bank_header=None if embedded is None else embedded.header.to_dict(),
            files=file_facts(folder, names),
            built_with={
                **{name: version(name) for name in _EXPORTERS},
                **(int8.built_with if int8 else {}),
                **written.built_with,
            },
            limits=written.limits,
            layers=written.layers,
            int8=int8 and int8.facts,
        )
        manifest.write(folder)
        return manifest

    def _metadata(self, embedded: OccluderBank | None) -> Mapping[str, str]:
        """Return what an ONNX file says of itself, should it lose its manifest."""
        header = None if embedded is None else embedded.header
        facts: dict[str, Any] = {
            "model": self.classifier.model,
            "weights_hash": self.classifier.weights_hash,
            "preprocessing": self.classifier.preprocessing.to_dict(),
            "class_ids": header and header.class_ids,
            "epsilon": header and header.epsilon,
            "norm": header and header.norm,
            "bank_hash": embedded and embedded.hash,
            "precision": self.config.precision,
            "gfo_version": version("gfo"),
        }
        return {f"gfo.{name}": v if isinstance(v, str) else json.dumps(v) for name, v in facts.items() if v is not None}


def _check_format(config: ExportConfig) -> None:
    """Raise `InputError` for an unknown format, or compute capabilities for a format that is not compiled for GPUs."""
    if config.compute_capabilities and not FORMATS[config.format].for_gpus:
        compiled = " or ".join(name for name, found in FORMATS.by_name().items() if found.for_gpus)
        raise InputError(
            f"--compute-capability {','.join(config.compute_capabilities)}: is for --format {compiled}; leave it out"
        )
    FORMATS.check(config.format)


def export(
    model: ModelSpec | FrozenClassifier,
    bank: OccluderBank | Path | str,
    out: Path,
    config: ExportConfig | None = None,
    prove: Callable[[Artefact], object] | None = None,
) -> Artefact:
    """Freeze classifier and bank into the folder `out`.

    Parameters
    ----------
    model
        A classifier, or the specification of one. An export at `int8` takes what `quantise` has returned.
    bank
        A bank of it, its file, or `zero:K` for K occluders of zeros.
    out
        A new folder; it appears whole or not at all.
    config
        Format, precision and the like; None is float32 ONNX with the bank embedded.
    prove
        Called with the artefact before its folder appears under its name; may write into it. Without it the parity in
        the manifest is `not run`.

    Raises
    ------
    InputError
        A bank of another model, `out` exists, a network that cannot be exported, or int8 of a classifier without it.
    EngineUnavailable
        A library that the format needs is not installed.
    """
    return Export(model, bank, out, config).write(prove)
