"""The demo: two small CNNs, their occluders, exports, all pairs on both splits and the report, on embedded data.

Only the material is the demo's own. What trains, evaluates and reports is what runs on ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...engine.data.spec import DataSpec
from ...engine.evaluation.config import EvaluationConfig
from ...engine.evaluation.evaluate import evaluate
from ...engine.evaluation.summary import Summary
from ...engine.parity.checked_export import ParityConfig, export_checked
from ...engine.progress import Progress, no_progress
from ...engine.reporting import ReportFiles, report
from ...engine.training.config import TrainConfig
from ...engine.training.train import train
from ...export.artefact import Artefact
from ...export.bank import OccluderBank
from ...export.classifier import load_classifier
from ...export.errors import InputError
from ...export.manifest import FAILED
from ...export.models.digits_recipe import digits_weights_path
from ...export.models.spec import ModelSpec
from ..pictures import picture_paths
from ..stages import throughput_rows
from ..throughput import PairsConfig, PairsRow
from ..workload import Workload
from .digits import digits_weights, one_thread, write_digits

# Pixel units. The plain network needs more to be fooled; at these both lose the class and keep most of the others.
EPSILONS: Final[Mapping[str, float]] = {"digits-resnet": 16.0, "digits-vgg": 32.0}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes
    ----------
    summaries
        `summaries[name][split]` is the summary of that RUN.
    artefacts
        The exported occluded classifier of each network.
    files
        What the report wrote.
    """

    summaries: Mapping[str, Mapping[str, Summary]]
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
        Seed of the occluders and the evaluation. The networks have their own, in their recipes.

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


def demo_rows(out: Path, *, seconds: float = 2.0, progress: Progress = no_progress) -> list[PairsRow]:
    """Measure a demo's networks under their occluders on the fastest engine present, and a plain loop.

    Parameters
    ----------
    out
        Folder into which `demo` ran.
    seconds
        For each network; twice that with its warm-up.
    """
    folder, rows, config = out / "data" / "val", list[PairsRow](), PairsConfig(seconds=seconds)
    for name in EPSILONS:
        classifier = load_classifier(ModelSpec(f"gfo/{name}"))
        occluders = OccluderBank.load(out / f"{name}.safetensors").occluders
        work = Workload(classifier, occluders, folder, picture_paths(folder), "digits")
        rows += throughput_rows(work, config, progress=progress)
    return rows


def _occlude_network(
    name: str, data: Path, out: Path, seed: int, progress: Progress
) -> tuple[dict[str, Summary], Artefact]:
    """Take one network through the demo; return its summary for each split and its exported form."""
    cached = digits_weights_path(name).is_file()
    progress.say(f"{name}: {'network from the cache' if cached else 'training the network, some seconds'}")
    digits_weights(name, data)
    model = ModelSpec(f"gfo/{name}")
    bank = out / f"{name}.safetensors"
    progress.say(f"{name}: occluders, epsilon {EPSILONS[name]:g}")
    # fp32, not what is measured as fastest here and now: two runs of the demo must agree.
    config = TrainConfig(epsilon=EPSILONS[name], seed=seed, precision="fp32")
    train(model, DataSpec(data), bank, config, progress)
    artefact = _exported(model, bank, out / "exported" / name, ParityConfig(DataSpec(data), seed=seed), progress)
    summaries = {}
    for spec, run in ((DataSpec(data), out / name), (DataSpec(data, "train"), out / name / "train")):
        progress.say(f"{name}: all pairs of {spec.split}")
        summaries[spec.split] = evaluate(model, bank, spec, run, EvaluationConfig(seed=seed), progress)
    return summaries, artefact


def _exported(model: ModelSpec, bank: Path, out: Path, check: ParityConfig, progress: Progress) -> Artefact:
    """Export network and bank as one graph; one that is there from the same bank is kept."""
    if not out.exists():
        artefact = export_checked(model, bank, out, check=check, progress=progress)
    else:
        artefact = Artefact.load(out)
        if artefact.manifest.bank_hash != OccluderBank.load(bank).hash:
            raise InputError(f"{out}: holds an export of another bank; use another --out or remove it")
    if artefact.manifest.parity["status"] == FAILED:
        raise InputError(
            f"{out}: failed its parity check ({artefact.manifest.parity['reason']}); run gfo-doctor --selftest"
        )
    return artefact
