"""All pairs: every picture clean, under every occluder of the bank and under one noise row; then the summary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from ...export.artefact import Artefact
from ...export.bank import OccluderBank
from ...export.bank_header import EmbeddedBank
from ...export.classifier import FrozenClassifier, load_classifier
from ...export.errors import InputError
from ...export.manifest import FAILED, NOT_RUN
from ...export.models.spec import ModelSpec
from ...export.subject import Subject
from ..data.folders import ClassFolder, beside_the_classes, mapped_elsewhere, name_of
from ..data.loading import open_source
from ..data.source import PictureSource
from ..data.spec import DataSpec
from ..doubts import accuracy_doubt
from ..engines.base import Engine
from ..engines.choice import open_engine
from ..machine import peak_rss_mb
from ..progress import Progress, no_progress
from .all_pairs import ToDo, all_pairs, refuse_quarantined, to_do
from .config import EvaluationConfig, run_folders
from .metrics import summarize, summarize_strengths
from .passes import choose_passes
from .results import PENDING, Results
from .selection import Picture, bank_folders, select_pictures
from .store import CLEAN, FIT_FITTED, FIT_HELD_OUT, FIT_PRESERVED, FIT_UNSEEN, NOISE, RunStore
from .strengths import check_out, check_strengths, load_rows, scaled_rows
from .summary import SCHEMA, STORE, SUMMARY_FILE, Fit, Run, Speed, Summary, plain, read_summary

Bank: TypeAlias = OccluderBank | EmbeddedBank

_MENDINGS = 2


def evaluate(
    model: ModelSpec | FrozenClassifier | Artefact,
    bank: OccluderBank | Path | None,
    data: DataSpec,
    out: Path,
    config: EvaluationConfig | None = None,
    progress: Progress = no_progress,
) -> Summary:
    """Run every occluder of a bank on every picture and write `out/predictions.zarr` and `out/summary.json`.

    Parameters
    ----------
    model
        What to run: a model, or an artefact that `export` wrote.
    bank
        A bank of this model, these weights and this preprocessing, or its file; None for an artefact with an embedded
        bank, which has no noise control, because the noise row would have to be in the bank.
    data
        Pictures. Classes of None reads those of the bank; a loader of `auto` continues a run with the loader that it
        was started with.
    config
        Engine and selection of pictures, and one strength; None means the defaults.

    Returns
    -------
    Summary
        The contents of `summary.json`. While other workers' shards are not done, `complete` is false, `remaining`
        counts their pictures, every result is None, and nothing is written.

    Raises
    ------
    InputError
        Bad input, or `out` holds a run of another configuration; the message names what differs.
    EngineUnavailable
        The engine or device is not available; nothing is then written.
    Unreachable
        A picture could not be reached; finished blocks are kept, and the same call resumes.
    KeyboardInterrupt
        Finished blocks are kept; the same call resumes.
    """
    config = config or EvaluationConfig()
    if len(config.strengths) > 1:
        raise InputError("evaluate: takes a single strength; call evaluate_strengths for several")
    (summary,) = evaluate_strengths(model, bank, data, out, config, progress).values()
    return summary


def evaluate_strengths(
    model: ModelSpec | FrozenClassifier | Artefact,
    bank: OccluderBank | Path | None,
    data: DataSpec,
    out: Path,
    config: EvaluationConfig,
    progress: Progress = no_progress,
) -> dict[float, Summary]:
    """Do what `evaluate` does at each of `config.strengths`, reading the pictures once.

    Several strengths have a RUN each, in `out/0.5` for 0.5, and a frontier in their summaries. Parameters and errors
    are those of `evaluate`; a summary is written once all strengths are done.
    """
    check_out(out, config.strengths)
    places = run_folders(out, config.strengths)
    data = replace(data, loader=_loader(data, places.values()))
    subject: Subject = load_classifier(model) if isinstance(model, ModelSpec) else model
    unchecked = _unchecked(subject)
    held, where = _bank(subject, bank)
    check_strengths(held, config.strengths, subject.preprocessing.input_size, subject.name)
    folders = bank_folders(held, where, data, subject.num_classes, config.seed)
    pictures = select_pictures(folders, held, config)
    choice = replace(config.engine, pairs=config.batch_size)
    with open_engine(choice, subject) as engine:  # before anything is written: a failing engine leaves no RUN
        source = open_source(data, subject.preprocessing, engine.torch_device)
        run, columns = _run(engine, source, (held, where), folders, data, config), _rows(held)
        rows = scaled_rows(held, config.strengths, config.seed) if isinstance(held, OccluderBank) else None
        del held  # of 1,000 classes it takes 600 MB
        if rows is not None:
            load_rows(engine, rows, config.strengths)
        del rows
        stores = _open_stores(places, run, pictures, columns)
        of_model = (unchecked, subject.doubt, subject.preprocessing.doubt)
        of_data = (beside_the_classes(data), mapped_elsewhere(data, folders, subject.num_classes))
        for line in filter(None, (*of_model, *of_data)):
            progress.say(line)
        why = f"{engine.reason}; {engine.how}"
        progress.say(f"engine {engine.name} on {engine.device}, {engine.precision}: {why}")
        progress.say(f"loader {source.name}: {source.how}")
        todo = [to_do(store, config.shard, data.files) for store in stores]
        if changed := max(one.changed for one in todo):
            progress.say(f"evaluating again the blocks of pictures that have changed since ({changed})")
            for place in places.values():
                (place / SUMMARY_FILE).unlink(missing_ok=True)
        every, left = 1 + (len(columns) - 1) * len(stores), {start for one in todo for start in one.pending}
        passes, why = choose_passes(engine, every, stores[0].count(left), config.batch_size)
        progress.say(f"{passes}: {why}")

        def fill(todo: Sequence[ToDo]) -> tuple[float, int]:
            how = {"max_quarantined": config.max_quarantined, "files": data.files, "progress": progress}
            return all_pairs(engine, stores, source, passes, todo=todo, **how)

        worked = [fill(todo), *_mend(stores, fill, progress)]
    seconds, pairs = map(sum, zip(*worked, strict=True))
    touched = [bool(one.pending) or len(worked) > 1 for one in todo]
    speeds = [_speed(place, seconds, pairs * some) for place, some in zip(places.values(), touched, strict=True)]
    summaries = _summaries(stores, speeds)
    first = summaries[0]
    if all(summary.complete for summary in summaries):  # otherwise other workers' shards are not done
        refuse_quarantined(stores[0], first.quarantined, config.max_quarantined)  # each worker has counted its own
        for place, summary in zip(places.values(), summaries, strict=True):
            summary.write(place)
        if (clean := first.clean) and (line := accuracy_doubt(clean.accuracy, subject.num_classes, subject.accuracy)):
            progress.say(line)
    return dict(zip(places, summaries, strict=True))


def _loader(data: DataSpec, places: Iterable[Path]) -> str:
    """Return the loader of the run that is resumed in place of `auto`: another machine may choose another one."""
    held = [place for place in places if (place / STORE).is_dir()]
    if data.loader != "auto" or not held:
        return data.loader
    return RunStore.open(held[0]).run.loader


def _unchecked(subject: Subject) -> str | None:
    """Return a warning about an artefact that was never checked; raise `InputError` where the check failed."""
    parity = subject.parity
    if parity is not None and parity["status"] == FAILED:
        raise InputError(f"{subject.name}: failed its parity check ({parity['reason']}); export it again")
    if parity is not None and parity["status"] == NOT_RUN:
        return f"{subject.name}: was never checked against PyTorch ({parity['reason']})"
    return None


def _bank(subject: Subject, bank: OccluderBank | Path | None) -> tuple[Bank, Path]:
    """Return the bank, and the file or folder that holds it."""
    embedded = subject.embedded_bank()
    if embedded is not None:
        if bank is not None:
            where = bank if isinstance(bank, Path) else "of occluders in memory"
            raise InputError(f"--occluders {where}: {subject.name} embeds its bank; leave --occluders out")
        return embedded, Path(subject.name)
    if bank is None:
        raise InputError("--occluders: a bank is needed, as none is embedded in the model; create one with gfo-train")
    return OccluderBank.of(bank, subject), bank if isinstance(bank, Path) else Path("(bank in memory)")


def _rows(bank: Bank) -> list[int]:
    """Return the columns of the store: clean, the bank's classes, and noise where the bank takes another row."""
    return [CLEAN, *bank.class_ids, *([NOISE] if isinstance(bank, OccluderBank) else [])]


def _run(
    engine: Engine,
    source: PictureSource,
    bank: tuple[Bank, Path],
    folders: Sequence[ClassFolder],
    data: DataSpec,
    config: EvaluationConfig,
) -> Run:
    """Describe the run for its store."""
    subject, (held, where) = engine.subject, bank
    own = {str(i): folder for i, folder in zip(held.class_ids, held.header.folders, strict=True)}
    named = own | {str(folder.class_id): folder.folder for folder in folders}
    return Run(
        gfo_version=version("gfo"),
        model=subject.model,
        num_classes=subject.num_classes,
        weights=subject.weights,
        weights_hash=subject.weights_hash,
        artefact=subject.key,
        bank=str(where.resolve() if where.exists() else where),
        bank_hash=held.hash,
        epsilon=held.epsilon,
        norm=held.norm,
        split=data.split,
        engine=engine.name,
        engine_variant=engine.variant,
        device=engine.device,
        precision=engine.precision,
        impl=engine.impl,
        loader=source.name,
        seed=config.seed,
        data_root=str(data.root.resolve()),
        preprocessing=subject.preprocessing,
        class_ids=tuple(held.class_ids),
        preserved_classes=held.preserved_classes,
        class_names={i: name_of(int(i), subject.num_classes, named) for i in named},
        folders=named,
        pictures=config.pictures,
        per_class=config.per_class,
    )


def _open_stores(
    places: Mapping[float, Path], run: Run, pictures: Sequence[Picture], rows: Sequence[int]
) -> list[RunStore]:
    """Create or open the store of each strength; raise `InputError` if one holds another run.

    Those that are there come first: where one is refused, none is created.
    """
    opened: dict[float, RunStore] = {}
    for strength, place in sorted(places.items(), key=lambda item: not (item[1] / STORE).exists()):
        own = replace(run, strength=strength, epsilon=strength * run.epsilon)
        opened[strength] = _open_store(place, own, pictures, rows)
    stores = [opened[strength] for strength in places]
    for store in stores:
        if (store.block, store.shard) != (stores[0].block, stores[0].shard):
            raise InputError(f"{store.path}: has other blocks than {stores[0].path}; remove it")
    return stores


def _open_store(out: Path, run: Run, pictures: Sequence[Picture], rows: Sequence[int]) -> RunStore:
    """Create the run's store, or open it to resume; raise `InputError` if it holds another run."""
    paths, labels, fit = ([picture[i] for picture in pictures] for i in range(3))
    if not (out / STORE).exists():
        try:
            return RunStore.create(out, run, paths=paths, labels=labels, fit=fit, occluders=rows)  # type: ignore[arg-type]
        except OSError:
            if not (out / STORE).exists():  # otherwise another worker was faster
                raise
    store = RunStore.open(out, writable=True)
    # The hashes identify what these fields name, and the kernels agree to the last bit or nearly so.
    movable = ("gfo_version", "weights", "bank", "data_root", "impl")
    stored, wanted = plain(store.run), plain(run)
    differing = [key for key in wanted if key not in movable and stored[key] != wanted[key]]
    if differing:
        listed = "; ".join(f"{k} {str(stored[k])[:60]}, not {str(wanted[k])[:60]}" for k in differing[:3])
        raise InputError(f"{out}: holds a run of another configuration ({listed}); use another --out or remove it")
    same = store.paths == paths and store.labels.tolist() == labels and store.fit.tolist() == fit
    if not same or store.occluders.tolist() != rows:
        raise InputError(f"{out}: holds a run over other pictures, labels or classes; use another --out or remove it")
    store.update_run(replace(run, gfo_version=store.run.gfo_version))
    return store


def _mend(
    stores: Sequence[RunStore], fill: Callable[[Sequence[ToDo]], tuple[float, int]], progress: Progress
) -> list[tuple[float, int]]:
    """Read every answer of runs that are complete, and evaluate again the blocks that are damaged.

    `fill` evaluates blocks and returns seconds and pairs, which are returned.

    Raises
    ------
    InputError
        What is written is damaged again.
    """
    mended: list[tuple[float, int]] = []
    while not any(store.pending() for store in stores):
        todo = [ToDo(store.starts(), store.damaged()) for store in stores]
        count = max(store.count(one.pending) for store, one in zip(stores, todo, strict=True))
        if not count:
            break
        if len(mended) == _MENDINGS:
            raise InputError(f"{stores[0].path}: answers that were just written are damaged; check the disk")
        progress.say(f"evaluating again the blocks whose answers are damaged ({count} pictures)")
        mended.append(fill(todo))
    return mended


def _summaries(stores: Sequence[RunStore], speeds: Sequence[Speed]) -> list[Summary]:
    remaining = [store.count(store.pending()) for store in stores]
    if len(stores) > 1 and not any(remaining):
        results = summarize_strengths(stores, seed=stores[0].run.seed)
    else:
        counted = zip(stores, remaining, strict=True)
        results = [PENDING if left else summarize(store, seed=store.run.seed) for store, left in counted]
    return [_summary(*facts) for facts in zip(stores, speeds, remaining, results, strict=True)]


def _summary(store: RunStore, speed: Speed, remaining: int, results: Results) -> Summary:
    quarantined = tuple(store.quarantined())
    codes = {"unseen": FIT_UNSEEN, "fitted": FIT_FITTED, "held_out": FIT_HELD_OUT, "preserved": FIT_PRESERVED}
    return Summary(
        schema=SCHEMA,
        complete=not remaining,
        **vars(store.run),
        read=len(store) - remaining - len(quarantined),
        quarantined_count=len(quarantined),
        quarantined=quarantined,
        fit=Fit(**{name: int((store.fit == code).sum()) for name, code in codes.items()}),
        **vars(results),
        **vars(speed),
    )


def _speed(out: Path, seconds: float, pairs: int) -> Speed:
    """Return the speed of this call, or of the last one that did something where this one had nothing left to do."""
    if not pairs and (out / SUMMARY_FILE).is_file():
        with contextlib.suppress(InputError):  # damaged: it is written anew, without a speed
            before = read_summary(out / SUMMARY_FILE)
            return Speed(**{field.name: getattr(before, field.name) for field in fields(Speed)})
    rate = pairs / seconds if pairs else None
    return Speed(pairs=pairs, seconds=seconds, pairs_per_second=rate, peak_rss_mb=peak_rss_mb())
