"""The demo: two small CNNs, their occluders, exports, all pairs on both splits and the report, on embedded data.

Only the material is the demo's own. What trains, evaluates and reports is what runs on ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...engine.evaluation.evaluate import evaluate
from ...engine.parity.checked_export import export_checked
from ...engine.progress import Progress, no_progress
from ...engine.reporting import ReportFiles, report
from ...engine.training.config import TrainConfig
from ...engine.training.train import train
from ...export.artefact import Artefact
from ...export.bank import OccluderBank
from ...export.classifier import load_classifier
from ...export.errors import InputError
from ...export.manifest import FAILED
from ...export.models.digits import digits_weights_path
from ...export.models.spec import ModelSpec
from ..measure import Row
from ..suites.loaders import picture_paths
from ..suites.pairs import throughput_rows
from ..workload import Work
from .digits import digits_weights, one_thread, write_digits

# Pixel units. The plain network needs more to be fooled; at these both lose the class and keep most of the others.
EPSILONS: Final[Mapping[str, float]] = {"digits-resnet": 16.0, "digits-vgg": 32.0}


@dataclass(frozen=True)
class DemoResult:
    """`summaries[name][split]` is the contents of that RUN's `summary.json`; `files` is what the report wrote.

    `artefacts[name]` is the exported occluded classifier.
    """

    summaries: Mapping[str, Mapping[str, dict[str, Any]]]
    artefacts: Mapping[str, Artefact]
    files: ReportFiles


def demo(out: Path, *, seed: int = 0, progress: Progress = no_progress) -> DemoResult:
    """Run the demo into a folder; what is there already from the same call is kept and not computed again.

    Writes the pictures to `out/data`, and for each network its bank to `out/<name>.safetensors`, network and bank as
    one ONNX graph, checked on test pictures, to `out/exported/<name>/`, and its RUNs to `out/<name>/` (val) and
    `out/<name>/train/`, on the fastest engine present; then `out/report.html` with its tables and figures.

    Parameters
    ----------
    seed
        Of the occluders and the evaluation. The networks have their own, in their recipes.

    Raises
    ------
    InputError
        `out` holds a demo with another seed or from another version, or an engine here computes something else.
    OSError
        `out` or the cache cannot be written.
    KeyboardInterrupt
        What is finished stays; the same call resumes.
    """
    data = write_digits(out / "data")
    with one_thread():
        done = {name: _occlude_network(name, data, out, seed, progress) for name in EPSILONS}
    runs = [run for name in EPSILONS for run in (out / name, out / name / "train")]
    summaries = {name: summary for name, (summary, _) in done.items()}
    artefacts = {name: artefact for name, (_, artefact) in done.items()}
    return DemoResult(summaries, artefacts, report(runs, out))


def demo_rows(out: Path, *, seconds: float = 2.0, progress: Progress = no_progress) -> list[Row]:
    """How fast a demo's networks are under their occluders on the fastest engine present, against a plain loop.

    Parameters
    ----------
    out
        Where `demo` has been.
    seconds
        For each network; twice that with its warm-up.
    """
    folder, rows = out / "data" / "val", []
    for name in EPSILONS:
        classifier = load_classifier(ModelSpec(f"gfo/{name}"))
        occluders = OccluderBank.load(out / f"{name}.safetensors").occluders
        work = Work(classifier, occluders, folder, picture_paths(folder), "digits")
        rows += throughput_rows(work, ["auto"], ["fp32"], seconds=seconds, progress=progress)
    return rows


def _occlude_network(
    name: str, data: Path, out: Path, seed: int, progress: Progress
) -> tuple[dict[str, dict[str, Any]], Artefact]:
    """One network's way through the demo, to its summary for each split and its exported form."""
    cached = digits_weights_path(name).is_file()
    progress.say(f"{name}: {'network from the cache' if cached else 'training the network, some seconds'}")
    digits_weights(name, data)
    model = ModelSpec(f"gfo/{name}")
    bank = out / f"{name}.safetensors"
    progress.say(f"{name}: occluders, epsilon {EPSILONS[name]:g}")
    config = TrainConfig(epsilon=EPSILONS[name], seed=seed)
    # fp32, not what is measured as fastest here and now: two runs of the demo are to give the same numbers.
    train(model, data, bank, config, precision="fp32", progress=progress)
    artefact = _exported(model, bank, data, out / "exported" / name, seed, progress)
    summaries = {}
    for split, run in (("val", out / name), ("train", out / name / "train")):
        progress.say(f"{name}: all pairs of {split}")
        summaries[split] = evaluate(model, bank, data, split, run, seed=seed, progress=progress)
    return summaries, artefact


def _exported(model: ModelSpec, bank: Path, data: Path, out: Path, seed: int, progress: Progress) -> Artefact:
    """Network and bank as one graph; what is there from the same bank is kept."""
    if not out.exists():
        artefact = export_checked(model, bank, out, data=data, seed=seed, progress=progress)
    else:
        artefact = Artefact.load(out)
        if artefact.manifest.bank_hash != OccluderBank.load(bank).hash:
            raise InputError(f"{out}: holds an export of another bank; use another --out or remove it")
    if artefact.manifest.parity["status"] == FAILED:
        raise InputError(
            f"{out}: failed its parity check ({artefact.manifest.parity['reason']}); run gfo-doctor --selftest"
        )
    return artefact
