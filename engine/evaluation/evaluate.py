"""All pairs: every picture clean, under every occluder of the bank and under one noise row; then the summary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...export.artefact import Artefact, EmbeddedBank
from ...export.bank import OccluderBank, picture_key
from ...export.classifier import FrozenClassifier, load_classifier
from ...export.errors import InputError
from ...export.files import atomic_path
from ...export.manifest import FAILED, NOT_RUN
from ...export.models.spec import ModelSpec
from ..data.folders import ClassFolder, list_classes, name_of
from ..data.loading import open_source
from ..data.spec import SPLITS, DataSpec
from ..data.webdataset import tar_files
from ..engines import open_engine
from ..engines.base import Subject
from ..machine import peak_rss_mb
from ..progress import Progress, no_progress
from .all_pairs import all_pairs, noise_row, pending_starts
from .metrics import summarize
from .passes import choose_split
from .store import CLEAN, FIT_FITTED, FIT_HELD_OUT, FIT_UNSEEN, NOISE, RunStore

PICTURES = ("all", "fitted", "held-out", "unseen")


def evaluate(
    model: ModelSpec | FrozenClassifier | Artefact,
    occluders: Path | None,
    data: Path,
    split: str,
    out: Path,
    *,
    engine: str = "auto",
    precision: str | None = None,
    device: str = "auto",
    classes: str | Sequence[str] | None = None,
    class_map: Path | None = None,
    pictures: str = "all",
    per_class: int | None = None,
    batch_size: int | None = None,
    loader: str = "auto",
    decoded_cache: bool = False,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    impl: str = "auto",
    provider: str = "auto",
    compiled: bool = False,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Run every occluder of a bank on every picture and write `out/predictions.zarr` and `out/summary.json`.

    Parameters
    ----------
    model
        What to run; an artefact, what `export` wrote.
    occluders
        A bank of this model, these weights and this preprocessing; None for an artefact with its bank inside: that one
        has no noise control, which would have to be in the bank.
    data, split
        Pictures are `data/<split>/<folder>/*`.
    classes
        None reads the bank's own classes; `all`, `random:N` or names read others.
    pictures, per_class
        Which training pictures: `all`, those the bank was `fitted` on, those `held-out`, or `unseen` ones; and how
        many of each class at most, a seeded draw.
    engine, precision, device
        See `engines.open_engine`; the precision of an artefact is its own, else fp32 if not given.
    batch_size
        Pairs in a pass through the network, at most; None measures what is fastest where the run is long enough, and
        remembers it (`split`).
    loader, decoded_cache
        See `pictures.open_source`; `auto` resumes a run with the loader that it has.
    workers
        Threads that decode while the engine works; None is one a core.
    shard
        (i, n): only every n-th block from the i-th (0 … n − 1), for n workers that fill one RUN together.
    impl, provider, compiled
        Of one engine: whose fused operations run around the network (torch; `kernels.impl.choose_impl`), through what
        ONNX Runtime runs, whether `torch.compile` is used.
    seed
        Of the noise row, the permutation, the draws and the bootstrap.

    Returns
    -------
    dict
        The contents of `summary.json`. Where other workers' shards are not done: `complete` is false, `remaining`
        their pictures, beside this call's speed, and no summary is written.

    Raises
    ------
    InputError
        Bad input, or `out` holds a run of another configuration; what differs is named.
    EngineUnavailable
        The engine or device is not there; then nothing is written.
    KeyboardInterrupt
        Finished blocks stay; the same call resumes.
    """
    _check(split, pictures, per_class, batch_size, workers, shard)
    subject = load_classifier(model) if isinstance(model, ModelSpec) else model
    unchecked = _unchecked(subject) if isinstance(subject, Artefact) else None
    bank, where = _bank(subject, occluders)
    folders = _folders(bank, where, subject, data, split, classes, class_map, seed)
    images = _select(folders, bank, pictures, per_class, seed)
    if precision is None:
        precision = subject.manifest.precision if isinstance(subject, Artefact) else "fp32"
    options = {"impl": impl, "provider": provider, "compiled": compiled, "pairs": batch_size}
    opened, why = open_engine(engine, subject, precision, device, **options)
    spec = DataSpec(data, split, loader=_loader(loader, out), decoded_cache=decoded_cache, workers=workers)  # type: ignore[arg-type]
    source = open_source(spec, subject.preprocessing, opened.torch_device)
    named = _folder_names(bank, folders)
    run = {
        "gfo_version": version("gfo"),
        "model": subject.model,
        "num_classes": subject.num_classes,
        "weights": subject.weights,
        "weights_hash": subject.weights_hash,
        "artefact": subject.key if isinstance(subject, Artefact) else None,
        "bank": str(where.resolve()),
        "bank_hash": bank.hash,
        "epsilon": bank.epsilon,
        "norm": bank.norm,
        "split": split,
        "engine": opened.name,
        "engine_variant": opened.variant,
        "device": opened.device,
        "precision": precision,
        "impl": opened.impl,
        "loader": source.name,
        "seed": seed,
        "data_root": str(data.resolve()),
        "preprocessing": subject.preprocessing.to_dict(),
        "class_ids": list(bank.class_ids),
        "class_names": {i: name_of(int(i), subject.num_classes, named) for i in named},
        "folders": named,
        "pictures": pictures,
        "per_class": per_class,
    }
    with opened as engine_:  # before anything is written: an engine that does not come up leaves no RUN
        store = _open_store(out, run, images, bank)
        if unchecked:
            progress.say(unchecked)
        progress.say(f"engine {opened.name} on {opened.device}, {precision}: {why}; {opened.how}")
        progress.say(f"loader {source.name}: {source.how}")
        if isinstance(bank, OccluderBank):
            noise = noise_row(bank.epsilon, bank.norm, bank.occluders.shape[1], seed)
            engine_.load_bank(torch.cat([bank.occluders, noise[None]]))
        passes, why = choose_split(engine_, len(store.occluders), _to_do(store, shard), batch_size)
        progress.say(f"{passes}: {why}")
        seconds, pairs = all_pairs(engine_, store, source, passes, shard=shard, progress=progress)
    remaining = _to_do(store, None)
    if remaining:  # a shard's worker that is not the last
        return {"complete": False, "remaining": remaining, **_speed(out, seconds, pairs)}
    return _summary(out, store, seconds, pairs)


def _to_do(store: RunStore, shard: tuple[int, int] | None) -> int:
    """Pictures that are not done, of the whole run or of a shard."""
    return sum(min(store.block, len(store) - start) for start in pending_starts(store, shard))


def _unchecked(artefact: Artefact) -> str | None:
    """A word where it was never checked; `InputError` where the check failed."""
    parity = artefact.manifest.parity
    if parity["status"] == FAILED:
        raise InputError(f"{artefact.folder}: failed its parity check ({parity['reason']}); export it again")
    said = f"{artefact.folder}: was never checked against PyTorch ({parity['reason']})"
    return said if parity["status"] == NOT_RUN else None


def _bank(subject: Subject, occluders: Path | None) -> tuple[OccluderBank | EmbeddedBank, Path]:
    """The bank, and the file or folder that it is in."""
    embedded = subject.embedded_bank() if isinstance(subject, Artefact) else None
    if isinstance(subject, Artefact) and embedded is not None:
        if occluders is not None:
            raise InputError(f"--occluders {occluders}: {subject.folder} has its bank inside; leave --occluders out")
        return embedded, subject.folder
    if occluders is None:
        raise InputError("--occluders: a bank is needed, there is none inside what is evaluated; gfo-train writes one")
    bank = OccluderBank.load(occluders)
    bank.check_fits(subject, occluders)
    return bank, Path(occluders)


def _loader(loader: str, out: Path) -> str:
    """`auto` is the run's own where there is one: another machine may have another."""
    if loader != "auto" or not (out / "predictions.zarr").is_dir():
        return loader
    return RunStore.open(out).run.get("loader", loader)


def _check(
    split: str,
    pictures: str,
    per_class: int | None,
    batch_size: int | None,
    workers: int | None,
    shard: tuple[int, int] | None,
) -> None:
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise InputError(f"--shard {shard[0]}/{shard[1]}: expected I/N with I from 0 to N - 1")
    if split not in SPLITS:
        raise InputError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    if pictures not in PICTURES:
        raise InputError(f"--pictures {pictures}: expected one of {', '.join(PICTURES)}")
    for option, value in (("--per-class", per_class), ("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: must be at least 1")


def _folders(
    bank: OccluderBank | EmbeddedBank,
    bank_path: Path,
    subject: Subject,
    data: Path,
    split: str,
    classes: str | Sequence[str] | None,
    class_map: Path | None,
    seed: int,
) -> list[ClassFolder]:
    own = list(bank.header.folders)
    missing = [folder for folder in own if not (data / split / folder).is_dir()]
    if classes is None and missing and (data / split).is_dir() and not tar_files(data / split):
        raise InputError(
            f"{bank_path}: its class {missing[0]} has no folder in {data / split}; evaluate on data with the bank's "
            "classes, or say which with --classes"
        )
    folders = list_classes(
        DataSpec(data, split, class_map=class_map),  # type: ignore[arg-type]
        own if classes is None else classes,
        subject.num_classes,
        seed,
    )
    trained_as = dict(zip(own, bank.class_ids, strict=True))
    for folder in folders:
        if trained_as.get(folder.folder, folder.class_id) != folder.class_id:
            raise InputError(
                f"{bank_path}: was trained with {folder.folder} as class {trained_as[folder.folder]}, here it is "
                f"{folder.class_id}; use the same class map"
            )
    return folders


def _select(
    folders: Sequence[ClassFolder], bank: OccluderBank | EmbeddedBank, pictures: str, per_class: int | None, seed: int
) -> list[tuple[str, int, int]]:
    """(path, class id, fit) of the pictures to evaluate, class by class."""
    fitted, held_out = set(bank.fitted.tolist()), set(bank.held_out.tolist())
    wanted = {"fitted": FIT_FITTED, "held-out": FIT_HELD_OUT, "unseen": FIT_UNSEEN}.get(pictures)
    chosen: list[tuple[str, int, int]] = []
    for folder in folders:
        keys = [picture_key(path) for path in folder.paths]
        fits = [FIT_FITTED if k in fitted else FIT_HELD_OUT if k in held_out else FIT_UNSEEN for k in keys]
        kept = [
            (path, folder.class_id, fit)
            for path, fit in zip(folder.paths, fits, strict=True)
            if wanted is None or fit == wanted
        ]
        if not kept:
            raise InputError(f"--pictures {pictures}: class folder of {folder.paths[0]} has none; choose others")
        if per_class is not None and len(kept) > per_class:
            order = np.random.default_rng([seed, folder.class_id]).permutation(len(kept))[:per_class]
            kept = [kept[i] for i in sorted(order)]
        chosen += kept
    return chosen


def _folder_names(bank: OccluderBank | EmbeddedBank, folders: Sequence[ClassFolder]) -> dict[str, str]:
    return {str(i): folder for i, folder in zip(bank.class_ids, bank.header.folders, strict=True)} | {
        str(f.class_id): f.folder for f in folders
    }


def _open_store(
    out: Path, run: dict[str, Any], images: Sequence[tuple[str, int, int]], bank: OccluderBank | EmbeddedBank
) -> RunStore:
    """The run's store, new or to be resumed; `InputError` if it is another run's."""
    paths, labels, fit = ([image[i] for image in images] for i in range(3))
    rows = [CLEAN, *bank.class_ids, *([NOISE] if isinstance(bank, OccluderBank) else [])]
    if not (out / "predictions.zarr").exists():
        try:
            return RunStore.create(out, run, paths=paths, labels=labels, fit=fit, occluders=rows)  # type: ignore[arg-type]
        except OSError:
            if not (out / "predictions.zarr").exists():  # else another worker was faster
                raise
    store = RunStore.open(out, writable=True)
    # Hashes and paths below say what they are, and the kernels agree to the last bit or nearly so.
    movable = ("gfo_version", "weights", "bank", "data_root", "impl")
    differing = [key for key in run if key not in movable and store.run.get(key) != run[key]]
    if differing:
        listed = "; ".join(f"{k} {str(store.run.get(k))[:60]}, not {str(run[k])[:60]}" for k in differing[:3])
        raise InputError(f"{out}: holds a run of another configuration ({listed}); use another --out or remove it")
    same = store.paths == paths and store.labels.tolist() == labels and store.fit.tolist() == fit
    if not same or store.occluders.tolist() != rows:
        raise InputError(f"{out}: holds a run over other pictures, labels or classes; use another --out or remove it")
    store.update_run({**run, "gfo_version": store.run["gfo_version"]})
    return store


def _summary(out: Path, store: RunStore, seconds: float, pairs: int) -> dict[str, Any]:
    quarantined = store.quarantined()
    codes = {"unseen": FIT_UNSEEN, "fitted": FIT_FITTED, "held_out": FIT_HELD_OUT}
    summary = {
        "schema": 1,
        "complete": True,
        **store.run,
        "read": len(store) - len(quarantined),
        "quarantined_count": len(quarantined),
        "quarantined": quarantined,
        "fit": {name: int((store.fit == code).sum()) for name, code in codes.items()},
        **summarize(store, seed=store.run["seed"]),
        **_speed(out, seconds, pairs),
    }
    with atomic_path(out / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=1, allow_nan=False))
    return summary


def _speed(out: Path, seconds: float, pairs: int) -> dict[str, Any]:
    """Of this call; of the last one that did something, where this one had nothing left to do."""
    if not pairs and (out / "summary.json").is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: it is written anew, without a speed
            before = json.loads((out / "summary.json").read_text())
            return {key: before[key] for key in ("pairs", "seconds", "pairs_per_second", "peak_rss_mb")}
    rate = pairs / seconds if pairs else None
    return {"pairs": pairs, "seconds": seconds, "pairs_per_second": rate, "peak_rss_mb": peak_rss_mb()}
