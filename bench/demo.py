"""The demo: two small CNNs, their occluders, all pairs on both splits and the report, on embedded data.

Only the material is the demo's own. What trains, evaluates and reports is what runs on ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..engine.evaluation import evaluate
from ..engine.progress import Progress, no_progress
from ..engine.reporting import ReportFiles, report
from ..engine.train_config import TrainConfig
from ..engine.training import train
from ..export.model_spec import ModelSpec
from ..export.networks import digits_weights_path
from .digits import digits_weights, one_thread, write_digits

# Pixel units. The plain network needs more to be fooled; at these both lose the class and keep most of the others.
EPSILONS: Final[Mapping[str, float]] = {"digits-resnet": 16.0, "digits-vgg": 32.0}


@dataclass(frozen=True)
class DemoResult:
    """`summaries[name][split]` is the contents of that RUN's `summary.json`; `files` is what the report wrote."""

    summaries: Mapping[str, Mapping[str, dict[str, Any]]]
    files: ReportFiles


def demo(out: Path, *, seed: int = 0, progress: Progress = no_progress) -> DemoResult:
    """Run the demo into a folder; what is there already from the same call is kept and not computed again.

    Writes the pictures to `out/data`, and for each network its bank to `out/<name>.safetensors` and its RUNs to
    `out/<name>/` (val) and `out/<name>/train/`; then `out/report.html` with its tables and figures.

    Parameters
    ----------
    seed
        Of the occluders and the evaluation. The networks have their own, in their recipes.

    Raises
    ------
    InputError
        `out` holds a demo with another seed or from another version.
    OSError
        `out` or the cache cannot be written.
    KeyboardInterrupt
        What is finished stays; the same call resumes.
    """
    data = write_digits(out / "data")
    with one_thread():
        summaries = {name: _occlude_network(name, data, out, seed, progress) for name in EPSILONS}
    runs = [run for name in EPSILONS for run in (out / name, out / name / "train")]
    return DemoResult(summaries, report(runs, out))


def _occlude_network(name: str, data: Path, out: Path, seed: int, progress: Progress) -> dict[str, dict[str, Any]]:
    """One network's way through the demo, to its summary for each split."""
    cached = digits_weights_path(name).is_file()
    progress.say(f"{name}: {'network from the cache' if cached else 'training the network, some seconds'}")
    digits_weights(name, data)
    model = ModelSpec(f"gfo/{name}")
    bank = out / f"{name}.safetensors"
    progress.say(f"{name}: occluders, epsilon {EPSILONS[name]:g}")
    config = TrainConfig(epsilon=EPSILONS[name], seed=seed)
    # fp32, not what is measured as fastest here and now: two runs of the demo are to give the same numbers.
    train(model, data, bank, config, precision="fp32", progress=progress)
    summaries = {}
    for split, run in (("val", out / name), ("train", out / name / "train")):
        progress.say(f"{name}: all pairs of {split}")
        summaries[split] = evaluate(model, bank, data, split, run, seed=seed, progress=progress)
    return summaries
