"""An artefact: the occluded classifier in a folder of its own, for one kind of engine, with its manifest.

| format | files | opens in |
|---|---|---|
| `onnx` | `model.onnx`, and `model.onnx.data` for large ones | ONNX Runtime, OpenVINO, anything that reads ONNX |
| `openvino` | `model.xml`, `model.bin` | OpenVINO |
| `trt` | `model.plan` | TensorRT, or TensorRT for RTX, of the version and GPUs that the manifest names |

With an embedded bank, `fit.safetensors` remembers which pictures it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bank import BankHeader, Described, OccluderBank
from .classifier import FrozenClassifier
from .errors import InputError
from .files import naming, save_tensors
from .manifest import EMBEDDED, FILES, FIT, FORMATS, INPUT, Limits, Manifest, file_facts
from .onnx_graph import OPSETS, occluded_graph, save_graph
from .preprocessing import Preprocessing


@dataclass(frozen=True)
class EmbeddedBank(Described):
    """What an artefact knows of the bank inside it: all but the occluders, which only its engine sees."""

    header: BankHeader
    hash: str
    fitted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    held_out: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


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
        """The file to open."""
        return self.folder / FILES[self.manifest.format][0]

    @property
    def key(self) -> str:
        """SHA-256 over those of the files: what a compiled form of it is cached under."""
        sums = "".join(self.manifest.files[name]["sha256"] for name in sorted(self.manifest.files))
        return hashlib.sha256(sums.encode()).hexdigest()

    @property
    def model(self) -> str:
        """As `FrozenClassifier.model`."""
        return self.manifest.model

    @property
    def weights(self) -> str:
        """As `FrozenClassifier.weights`."""
        return self.manifest.weights

    @property
    def weights_hash(self) -> str:
        """As `FrozenClassifier.weights_hash`."""
        return self.manifest.weights_hash

    @property
    def preprocessing(self) -> Preprocessing:
        """As `FrozenClassifier.preprocessing`."""
        return self.manifest.preprocessing

    @property
    def num_classes(self) -> int:
        """As `FrozenClassifier.num_classes`."""
        return self.manifest.num_classes

    def embedded_bank(self) -> EmbeddedBank | None:
        """The bank inside; None where it is an input.

        Raises
        ------
        InputError
            The manifest's words on the bank, or the file beside it, are not valid.
        """
        if self.manifest.bank == INPUT:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            header = BankHeader.from_json(json.dumps(self.manifest.bank_header))
            bank = EmbeddedBank(header, str(self.manifest.bank_hash), **load_file(self.folder / FIT))
            bank.check_fits(self, self.folder)
            if any(keys.dtype != torch.int64 or keys.dim() != 1 for keys in (bank.fitted, bank.held_out)):
                raise ValueError(f"{FIT} holds no int64 lists")
            return bank
        except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
            raise InputError(
                f"{self.folder}: its bank is not described as it should be ({error}); export again"
            ) from error


def export(
    classifier: FrozenClassifier,
    bank: OccluderBank,
    out: Path,
    *,
    format: str = "onnx",  # noqa: A002 (what the option is called)
    precision: str = "fp32",
    bank_input: bool = False,
    batch_size: int = 64,
    compute_capabilities: Sequence[str] = (),
    prove: Callable[[Artefact], object] | None = None,
) -> Artefact:
    """Freeze classifier and bank into the folder `out`; the parity in its manifest is `not run`, unless proved.

    Parameters
    ----------
    bank
        Of this classifier. Embedded, unless `bank_input`.
    out
        A new folder; it appears whole or not at all.
    format
        `onnx`, `openvino` or `trt`.
    precision
        fp32, bf16 or fp16 for the network; occlusion and logits are float32.
    batch_size
        Only for `trt`: the best and largest number of pairs, and of pictures, of a call.
    compute_capabilities
        Only for `trt` without a GPU: those that the engine file is for, as `8.9`; see `choose_targets`.
    prove
        Called with the artefact before its folder appears under its name; may write into it.

    Raises
    ------
    InputError
        A bank of another model, `out` exists, a network that cannot be exported, a format or precision that there is
        not.
    EngineUnavailable
        A library that the format needs is not installed.
    """
    check_export(out, format, precision)
    bank.check_fits(classifier, "--occluders")
    # The last folder stays one name: a manifest inside names its neighbours only.
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with naming(out):
        partial.mkdir(parents=True)
    try:
        with naming(out):  # a full disk does not say what it was to hold
            manifest = _write(
                partial, classifier, bank, format, precision, bank_input, batch_size, compute_capabilities
            )
        if prove:
            prove(Artefact(partial, manifest))
        with naming(out):
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Artefact.load(out)


def check_export(out: Path, format: str, precision: str) -> None:  # noqa: A002
    """Raise `InputError` for a format or precision that there is not, or a folder that is there already."""
    if format not in FORMATS:
        raise InputError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    if precision not in OPSETS:
        raise InputError(f"--precision {precision}: expected one of {', '.join(OPSETS)}")
    if out.exists():
        raise InputError(f"--out {out}: is there already; name a new folder, or remove it")


def _write(
    folder: Path,
    classifier: FrozenClassifier,
    bank: OccluderBank,
    format: str,  # noqa: A002
    precision: str,
    bank_input: bool,
    batch_size: int,
    compute_capabilities: Sequence[str],
) -> Manifest:
    manifest = Manifest(
        format=format,
        precision=precision,
        model=classifier.model,
        weights=classifier.weights,
        weights_hash=classifier.weights_hash,
        preprocessing=classifier.preprocessing,
        num_classes=classifier.num_classes,
        bank=INPUT if bank_input else EMBEDDED,
        bank_hash=None if bank_input else bank.hash,
        bank_header=None if bank_input else json.loads(bank.header.to_json()),
        files={},
        built_with={name: version(name) for name in ("torch", "onnx", "onnxscript")},
    )
    graph = occluded_graph(
        classifier,
        precision,
        None if bank_input else bank.occluders,
        gather="float32" if format == "trt" else "uint8",
        metadata=_metadata(manifest),
    )
    names = save_graph(graph, folder / "model.onnx")
    if format != "onnx":
        manifest, names = _converted(folder, names, manifest, batch_size, compute_capabilities)
    if not bank_input:
        save_tensors(folder / FIT, {"fitted": bank.fitted, "held_out": bank.held_out})
        names = [*names, FIT]
    manifest = replace(manifest, files=file_facts(folder, names))
    manifest.write(folder)
    return manifest


def _metadata(manifest: Manifest) -> dict[str, str]:
    """What the ONNX file says of itself, should it lose its manifest."""
    header = manifest.bank_header or {}
    facts: dict[str, Any] = {
        "model": manifest.model,
        "weights_hash": manifest.weights_hash,
        "preprocessing": manifest.preprocessing.to_dict(),
        "class_ids": header.get("class_ids"),
        "epsilon": header.get("epsilon"),
        "norm": header.get("norm"),
        "bank_hash": manifest.bank_hash,
        "precision": manifest.precision,
        "gfo_version": manifest.gfo_version,
    }
    return {f"gfo.{name}": v if isinstance(v, str) else json.dumps(v) for name, v in facts.items() if v is not None}


def _converted(
    folder: Path, onnx_files: list[str], manifest: Manifest, batch_size: int, compute_capabilities: Sequence[str]
) -> tuple[Manifest, list[str]]:
    """Turn `model.onnx` into the other format and remove it: the manifest, completed, and the new files."""
    source, built = folder / onnx_files[0], dict(manifest.built_with)
    if manifest.format == "openvino":
        from .formats.openvino import openvino_from_onnx

        names = openvino_from_onnx(source, folder / "model.xml")
        manifest = replace(manifest, built_with={**built, "openvino": version("openvino")})
    else:
        from .tensorrt.plan import self_contained_profile, tensorrt_from_onnx

        size = manifest.preprocessing.input_size
        # The clean row, all classes, and the noise row of an evaluation.
        rows = None if manifest.bank == EMBEDDED else (2, manifest.num_classes + 2)
        profile = self_contained_profile(size, batch_size, rows)
        plan = tensorrt_from_onnx(
            source, folder / "model.plan", manifest.precision, profile, compute_capabilities=compute_capabilities
        )
        limits = Limits(
            pairs=(1, batch_size, batch_size),
            pictures=(1, batch_size, batch_size),
            rows=None if rows is None else (rows[0], rows[0], rows[1]),
            library=plan.library,
            library_version=plan.library_version,
            compute_capabilities=plan.compute_capabilities,
        )
        names = ["model.plan"]
        manifest = replace(
            manifest,
            built_with={**built, plan.library: plan.library_version},
            limits=limits,
            layers=dict(plan.layer_types),
        )
    for name in onnx_files:
        (folder / name).unlink()
    return manifest, names
