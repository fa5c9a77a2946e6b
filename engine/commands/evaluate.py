"""`gfo-eval`: every occluder of a bank on every picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ...export.errors import InputError
from ...export.options import whole_number
from .. import terminal
from ..names import visible
from . import options

if TYPE_CHECKING:
    from ...export.artefact import Artefact
    from ...export.models.spec import ModelSpec
    from ..evaluation.results import Accuracy, Rate, Ratio
    from ..evaluation.summary import Summary
    from ..sampling.certify import CertificateSpec
    from ..sampling.spec import SamplingSpec

app = options.new_app()

_NAME_WIDTH = len("unmatched_preserved/clean")


@dataclass(frozen=True)
class SubjectOptions(options.ModelOptions):
    """A model, or an artefact in its place."""

    model: Annotated[str | None, typer.Option(help=options.MODEL_HELP)] = None  # type: ignore[assignment]
    artefact: Annotated[
        Path | None, typer.Option(help="A folder that gfo-export wrote, instead of MODEL and of an embedded bank.")
    ] = None
    occluders: Annotated[Path | None, typer.Option(help="A bank that gfo-train wrote for this model.")] = None

    def subject(self, seed: int) -> ModelSpec | Artefact:
        """Return what is evaluated; raise `InputError` for options that an artefact decides itself."""
        if (self.model is None) == (self.artefact is None):
            raise InputError("--model, --artefact: pass exactly one of them")
        if self.artefact is None:
            return self.spec(seed)
        from ...export.artefact import Artefact

        if replace(self, artefact=None, occluders=None) != SubjectOptions():
            raise InputError(f"--artefact {self.artefact}: fixes weights and preprocessing; leave their options out")
        return Artefact.load(self.artefact)


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(options.DataOptions):
    """Which pictures of the data are evaluated."""

    split: Annotated[str, typer.Option(help="train or val.")]
    pictures: Annotated[
        str, typer.Option(help="all, or by the bank's use of them: fitted, held-out, preserved, unseen.")
    ] = "all"
    per_class: Annotated[int | None, typer.Option(help="Maximum number of pictures per class, a seeded draw.")] = None


@dataclass(frozen=True)
class RunOptions(options.Group):
    """Where the answers go, and which share of them this process makes."""

    panel: ClassVar[str] = "Run"
    out: Annotated[Path, typer.Option(help="The RUN: predictions.zarr and summary.json.")]
    shard: Annotated[
        str | None, typer.Option(help="I/N: this is worker I (from 0) of N that fill one --out together.")
    ] = None
    max_quarantined: Annotated[
        float, typer.Option(help="Maximum share of files that are not pictures, 0 to 1; a run with more is refused.")
    ] = 0.05
    seed: options.Seed = 0
    strength: Annotated[
        str,
        typer.Option(metavar="X[,X…]", help="Factors on the occluders; several have a RUN each, OUT/X, in one pass."),
    ] = "1"


@dataclass(frozen=True)
class SampleOptions(options.Group):
    """Whether a part of the pairs is enough."""

    panel: ClassVar[str] = "Sample"
    until: Annotated[
        str | None,
        typer.Option(
            metavar="W|CELL=W[,…]",
            help="Draw pairs at random until the 95% half-width of every cell, or of those named, is at most W.",
        ),
    ] = None
    claim: Annotated[
        str | None,
        typer.Option(metavar="CELL<=X|CELL>=X[,…]", help="Draw pairs at random until these claims are decided."),
    ] = None
    max_pairs: Annotated[int | None, typer.Option(help="The most pairs to draw.")] = None
    certify: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|ARTEFACT",
            help="After all pairs, draw some in fp32, and say what the cells would be; --until (0.005) is about these.",
        ),
    ] = None

    def certificate(self) -> CertificateSpec | None:
        """Return when the certification ends; None for none. Raises `InputError`."""
        if self.certify is None:
            return None
        if self.claim is not None:
            raise InputError(f"--claim {self.claim}: is decided by a sample; with --certify, leave it out")
        from ..sampling.certify import parse_certificate

        return parse_certificate(self.until, self.max_pairs)

    def reference(self) -> Artefact | None:
        """Return what answers in fp32, None for the model. Raises `InputError`."""
        from ...export.artefact import Artefact

        if self.certify is None or self.certify == "fp32":
            return None
        if not Path(self.certify).is_dir():
            raise InputError(f"--certify {self.certify}: expected fp32, or the folder of an fp32 export")
        return Artefact.load(Path(self.certify))

    def spec(self) -> SamplingSpec | None:
        """Return when the sampling ends; None where all pairs are evaluated. Raises `InputError`."""
        if self.certify is not None:
            return None
        if self.until is None and self.claim is None:
            if self.max_pairs is not None:
                raise InputError(f"--max-pairs {self.max_pairs}: limits --until and --claim; give one of them")
            return None
        from ..sampling.spec import parse_spec

        return parse_spec(self.until, self.claim, self.max_pairs)


@options.command(app)
def evaluate(
    subject: SubjectOptions,
    data: SelectionOptions,
    engine: options.EngineOptions,
    run: RunOptions,
    sample: SampleOptions,
    cluster: options.ClusterOptions,
    log_json: options.LogJson = None,
) -> None:
    """Evaluate all pairs of DATA/SPLIT, or a sample. Finished blocks are kept; the same command resumes."""
    from ..evaluation.config import EvaluationConfig, run_folders
    from ..evaluation.evaluate import evaluate_strengths

    config = EvaluationConfig(
        engine=engine.choice(),
        pictures=data.pictures,
        per_class=data.per_class,
        batch_size=engine.batch_size,
        shard=_shard(run.shard),
        max_quarantined=run.max_quarantined,
        seed=run.seed,
        strengths=_strengths(run.strength),
        cluster=cluster.spec(),
    )
    sampling, certificate = sample.spec(), sample.certificate()
    with options.progress("gfo-eval", log_json) as progress:
        what = subject.subject(run.seed), subject.occluders, data.spec(data.split), run.out, config
        if certificate is not None:
            from ..sampling.certify import evaluate_certified

            summaries = evaluate_certified(sample.reference(), *what, certificate, progress)
        elif sampling is not None:
            from ..sampling.evaluate import evaluate_sample

            print("\n".join(_sampled_lines(evaluate_sample(*what, sampling, progress), run.out)))
            return
        else:
            summaries = evaluate_strengths(*what, progress)
    if not all(summary.complete for summary in summaries.values()):
        most = max(summary.remaining for summary in summaries.values())
        left = f"{most} pictures belong to other workers or are not done"
        print(f"{run.out}: {left}; the worker that ends last writes summary.json")
        return
    places = run_folders(run.out, config.strengths)
    for strength, summary in summaries.items():
        if len(summaries) > 1:
            print(f"strength {strength:g}, ε = {summary.epsilon:g}")
        print("\n".join([*_lines(summary), *_certificate_lines(summary)]))
        print(f"{places[strength] / 'summary.json'}")
    for line in _frontier_lines(summaries[config.strengths[0]]):
        print(line)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = map(whole_number, text.partition("/"))
    if index is None or count is None:
        raise InputError(f"--shard {text}: expected I/N, as 0/4 to 3/4")
    return index, count


def _strengths(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise InputError(f"--strength {text}: expected numbers separated by commas, as 0.5,0.7,1") from error


def _lines(summary: Summary) -> list[str]:
    """Return a line for each cell that has pictures, with its interval over classes, and one about quarantine.

    Without preserved classes, `unseen` cells would repeat the others.
    """
    from ..evaluation.results import RATIOS

    cells = ["clean", "matched", "unmatched", "permuted", "noise", "clean_other", "unmatched_other"]
    ratios = list(RATIOS)[:2]
    if summary.preserved_classes:
        cells += ["clean_preserved", "unmatched_preserved", "clean_unseen", "unmatched_unseen"]
        ratios = list(RATIOS)
    lines = [
        *(_line(name, cell.accuracy, cell) for name in cells if (cell := getattr(summary, name))),
        *(_line(name, ratio.value, ratio) for name in ratios if (ratio := summary.ratios.get(name))),
    ]
    if rate := summary.fooling_rate:
        lines.append(_line("fooling rate", rate.value, rate))
    if summary.quarantined:
        first = summary.quarantined[0]
        lines.append(
            f"{summary.quarantined_count} quarantined, the first: {visible(f'{first.path} ({first.reason})')};"
        )
        lines.append("once they are fixed, the same command reads them")
    return lines


def _sampled_lines(summary: Summary, out: Path) -> list[str]:
    """Return a line for each cell of a sampled run with both of its intervals, one for each claim, and the file."""
    assert summary.sample is not None
    lines = _lines(summary)
    lines.append("sampled; ± is the 95% half-width over the pairs that were not drawn")
    for cell in summary.sample.cells:
        known = cell.pairs == cell.total
        drawn = f"all {cell.total:,} pairs, exact" if known else f"{cell.pairs:,} of {cell.total:,} pairs"
        lines.append(f"{cell.cell:{_NAME_WIDTH}} {cell.value:.4f}  ± {cell.half_width:.4f}  {drawn}")
    for claim in summary.sample.claims:
        low, high = claim.sequence
        needed = f"; some {claim.pairs_needed:,} pairs would probably decide it" if claim.pairs_needed else ""
        lines.append(f"claim {claim.claim}: {claim.decision}; 95% at every look {low:.4f} to {high:.4f}{needed}")
    for cell in summary.sample.short:
        lines.append(f"{cell.cell}: ± {cell.half_width:.4f}, not ± {cell.wanted:g}: --max-pairs was reached")
    return [*lines, f"{out / 'summary.json'}"]


def _certificate_lines(summary: Summary) -> list[str]:
    """Return a line for each cell as it would be in fp32; none where it was not asked."""
    found = summary.certificate
    if found is None:
        return []
    lines = [f"in fp32, by engine {found.engine}; ± is the 95% half-width over the pairs that were not drawn"]
    for cell in found.cells:
        changed = "" if cell.changed is None else f", {cell.changed:.2%} of them right in only one"
        lines.append(
            f"{cell.cell:{_NAME_WIDTH}} {cell.value:.4f}  ± {cell.half_width:.4f}  ({summary.precision} {cell.run:.4f})"
            f"  {cell.pairs:,} of {cell.total:,} pairs{changed}"
        )
    short = "--max-pairs was reached"
    lines += [f"{cell.cell}: ± {cell.half_width:.4f}, not ± {cell.wanted:g}: {short}" for cell in found.short]
    return lines


def _frontier_lines(summary: Summary) -> list[str]:
    """Return a table of the frontier: a column for each mark; none for a single strength."""
    from ..evaluation.results import MARKS

    if summary.frontier is None:
        return []
    rows = {"unmatched/clean": summary.frontier.unmatched}
    if summary.preserved_classes:
        rows["unmatched_unseen/clean"] = summary.frontier.unmatched_unseen
    table = [("at matched/clean", *MARKS)]
    table += [(name, *(_at_mark(marks[mark]) for mark in MARKS)) for name, marks in rows.items()]
    return [
        "frontier, 95% over classes in brackets",
        *(f"{name:{_NAME_WIDTH}} {_row(cells)}" for name, *cells in table),
    ]


def _row(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:23}" for cell in cells).rstrip()


def _at_mark(ratio: Ratio | None) -> str:
    if ratio is None:
        return "not reached"
    bounds = ratio.ci95_classes
    return f"{ratio.value:.4f}" + (f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "")


def _line(name: str, value: float, cell: Accuracy | Ratio | Rate) -> str:
    bounds = cell.ci95_classes
    interval = f"95% over classes {bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
    return f"{name:{_NAME_WIDTH}} {value:.4f}  {interval}"


def main() -> None:
    """Run the console script."""
    terminal.run(app, "gfo-eval")
