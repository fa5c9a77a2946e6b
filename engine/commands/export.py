"""`gfo-export`: model and bank as one portable, proven artefact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ...export.errors import InputError
from ...export.formats import FORMATS
from .. import terminal
from . import options

if TYPE_CHECKING:
    from ...export.artefact import ExportConfig
    from ..calibration import CalibrationConfig
    from ..parity.checked_export import ParityConfig

app = options.new_app()


@dataclass(frozen=True)
class ArtefactOptions(options.Group):
    """What is written."""

    panel: ClassVar[str] = "Artefact"
    occluders: Annotated[Path, typer.Option(help="A bank that gfo-train wrote for this model, or zero:K.")]
    out: Annotated[Path, typer.Option(help="A new folder for the artefact.")]
    format_: Annotated[str, typer.Option("--format", help=f"{FORMATS.listed()}.")] = "onnx"
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32"
    bank_input: Annotated[
        bool, typer.Option("--bank-input", help="Leave the bank an input of the graph, for any bank of this model.")
    ] = False
    batch_size: Annotated[int, typer.Option(help="Pairs in a pass; for trt the best and largest number.")] = 64
    compute_capability: Annotated[
        str, typer.Option(help="trt without a GPU: compute capabilities to build for, as 8.6,8.9.")
    ] = ""

    def config(self) -> ExportConfig:
        """Return the configuration, as functions take it."""
        from ...export.artefact import ExportConfig

        targets = tuple(filter(None, self.compute_capability.split(",")))
        return ExportConfig(self.format_, self.precision, self.bank_input, self.batch_size, targets)


@dataclass(frozen=True)
class ParityOptions(options.Group):
    """How the artefact is compared with PyTorch."""

    panel: ClassVar[str] = "Parity check"
    data: Annotated[
        Path | None, typer.Option(help="Check on pictures DATA/SPLIT/<class>/*; synthetic ones if not given.")
    ] = None
    split: Annotated[str | None, typer.Option(help="train or val; val if not given.")] = None
    class_map: options.ClassMap = None
    parity: Annotated[
        bool, typer.Option("--parity/--no-parity", help="Compare every engine here that runs it with PyTorch.")
    ] = True
    parity_pairs: Annotated[
        int | None, typer.Option(help="Pairs to compare; 300, or 2,100 below fp32 on real pictures.")
    ] = None
    seed: options.Seed = 0

    def config(self) -> ParityConfig | None:
        """Return the configuration, as functions take it; None for `--no-parity`."""
        from ..data.spec import DataSpec
        from ..parity.checked_export import ParityConfig

        self._check_unread()
        if not self.parity:
            return None
        if self.data is None:
            return ParityConfig(None, self.parity_pairs, self.seed)
        data = DataSpec(self.data, self.split or "val", class_map=self.class_map)  # type: ignore[arg-type]
        return ParityConfig(data, self.parity_pairs, self.seed)

    def _check_unread(self) -> None:
        """Raise `InputError` for options that would not be read."""
        of_data = {"--split": self.split, "--class-map": self.class_map}
        of_parity = {"--data": self.data, **of_data, "--parity-pairs": self.parity_pairs}
        unread = [name for name, value in (of_data if self.parity else of_parity).items() if value is not None]
        if unread and not self.parity:
            raise InputError(f"--no-parity: does not read {', '.join(unread)}; leave that out")
        if unread and self.data is None:
            raise InputError(f"{', '.join(unread)}: not read without --data; pass --data as well, or leave that out")


@dataclass(frozen=True)
class CalibrationOptions(options.Group):
    """The pictures that set the ranges of an int8 network."""

    panel: ClassVar[str] = "Calibration"
    calibration: Annotated[
        Path | None, typer.Option(help="int8: calibrate on pictures CALIBRATION/train/<class>/*; DATA if not given.")
    ] = None
    calibration_pictures: Annotated[
        int | None, typer.Option(help="int8: number of pictures, half of them occluded; 300 if not given.")
    ] = None

    def config(self, precision: str, parity: ParityOptions) -> CalibrationConfig | None:
        """Return the configuration, as functions take it; None for a precision that needs no pictures."""
        from ...export.classifier import INT8
        from ..calibration import PICTURES, CalibrationConfig
        from ..data.spec import DataSpec

        given = {"--calibration": self.calibration, "--calibration-pictures": self.calibration_pictures}
        unread = [name for name, value in given.items() if value is not None]
        if precision != INT8:
            if unread:
                raise InputError(
                    f"{', '.join(unread)}: not read at --precision {precision}; use {INT8}, or leave that out"
                )
            return None
        root = self.calibration or parity.data
        if root is None:
            raise InputError(
                f"--precision {INT8}: needs training pictures to calibrate on; pass --calibration or --data"
            )
        pictures = PICTURES if self.calibration_pictures is None else self.calibration_pictures
        return CalibrationConfig(DataSpec(root, "train", class_map=parity.class_map), pictures, parity.seed)


@options.command(app)
def export(
    model: options.ModelOptions, artefact: ArtefactOptions, calibration: CalibrationOptions, parity: ParityOptions
) -> None:
    """Freeze model, occluders and preprocessing into one graph, and check that engines compute what PyTorch does.

    Exit code 4 if the check fails; the artefact stays, marked as failed, and gfo-eval refuses it.
    """
    from ...export.manifest import FAILED
    from ..parity.checked_export import export_checked
    from ..progress import TerminalProgress

    written = export_checked(
        model.spec(parity.seed),
        artefact.occluders,
        artefact.out,
        artefact.config(),
        parity.config(),
        TerminalProgress(),
        calibration.config(artefact.precision, parity),
    )
    facts = written.manifest
    size = sum(file["bytes"] for file in facts.files.values())
    what = f"{', '.join(facts.files)} ({size / 1e6:.1f} MB), {facts.format}, {facts.precision}, bank {facts.bank}"
    print(f"{artefact.out}: {what}")
    if facts.layers is not None:
        print("layers by type: " + ", ".join(f"{count} {name}" for name, count in facts.layers.items()))
    because = f": {facts.parity['reason']}" if facts.parity["reason"] else ""
    print(f"parity: {facts.parity['status']}{because}")
    if facts.parity["status"] == FAILED:
        raise typer.Exit(terminal.FAILED)


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-export", resumes=False)
