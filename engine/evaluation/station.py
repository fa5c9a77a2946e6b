"""What is ready to evaluate blocks of a run: an engine that is open, with its bank, the pictures and the stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

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
from ..engines.base import Engine
from ..engines.choice import open_engine
from ..progress import Progress
from .all_pairs import all_pairs
from .config import EvaluationConfig, run_folders
from .passes import Passes, choose_passes
from .selection import Picture, bank_folders, select_pictures
from .store import CLEAN, NOISE, RunStore
from .strengths import check_out, check_strengths, load_rows, scaled_rows
from .summary import STORE, Run, plain
from .todo import ToDo, to_do

Bank: TypeAlias = OccluderBank | EmbeddedBank
# The hashes identify what these fields name, and the kernels agree to the last bit or nearly so.
_MOVABLE = ("gfo_version", "weights", "bank", "data_root", "impl")


@dataclass(frozen=True)
class Job:
    """What is evaluated; see `evaluate`.

    With `clean_only` the bank is there for pairs that are drawn, and the store has clean answers alone.
    """

    model: ModelSpec | FrozenClassifier | Artefact
    bank: OccluderBank | Path | None
    data: DataSpec
    out: Path
    config: EvaluationConfig
    clean_only: bool = False


@dataclass(frozen=True)
class Opened:
    """What evaluates pairs: an engine that is open, with its bank, and pictures.

    Attributes
    ----------
    run
        Description of the run, at strength 1.
    columns
        Columns of its store.
    lines
        What there is to say of all this, once nothing is refused any more.
    """

    job: Job
    engine: Engine
    source: PictureSource
    run: Run
    pictures: Sequence[Picture]
    columns: Sequence[int]
    lines: Sequence[str]


@dataclass(frozen=True)
class Station:
    """What evaluates blocks of a run.

    Attributes
    ----------
    stores, places
        The store of each strength, and the RUN that holds it.
    accuracy
        Top-1 accuracy that the weights are known for, 0 … 1, None where it is not known.
    """

    job: Job
    engine: Engine
    source: PictureSource
    stores: Sequence[RunStore]
    places: Sequence[Path]
    progress: Progress

    @property
    def accuracy(self) -> float | None:
        """See above."""
        return self.engine.subject.accuracy

    def to_do(self, shard: tuple[int, int] = (0, 1)) -> list[ToDo]:
        """Return what is to be done of each store, by this worker of several."""
        return [to_do(store, store.starts(*shard), self.job.data.files) for store in self.stores]

    def not_done(self, which: int, starts: Sequence[int]) -> list[int]:
        """Return which of some blocks of store number `which` are not there, not whole, or of changed pictures."""
        store = self.stores[which]
        todo = to_do(store, starts, self.job.data.files)
        return sorted({*todo.pending, *store.damaged([start for start in starts if start not in todo.pending])})

    def passes(self, pictures: int) -> Passes:
        """Return the passes for a run over so many pictures, and say why; see `choose_passes`."""
        rows = 1 + (len(self.stores[0].occluders) - 1) * len(self.stores)
        passes, why = choose_passes(self.engine, rows, pictures, self.job.config.batch_size)
        self.progress.say(f"{passes}: {why}")
        return passes

    def fill(self, todo: Sequence[ToDo], passes: Passes | None = None) -> tuple[float, int]:
        """Evaluate blocks of each store; return seconds and pairs. Errors are those of `all_pairs`."""
        config, stores = self.job.config, self.stores
        if passes is None:
            passes = self.passes(stores[0].count({start for one in todo for start in one.pending}))
        return all_pairs(
            self.engine,
            stores,
            self.source,
            passes,
            todo=todo,
            max_quarantined=config.max_quarantined,
            files=self.job.data.files,
            progress=self.progress,
        )


@contextlib.contextmanager
def open_station(job: Job, progress: Progress) -> Iterator[Station]:
    """Open everything for a `with` block, and create the stores that are not there; errors are those of `evaluate`."""
    config = job.config
    check_out(job.out, config.strengths)
    places = run_folders(job.out, config.strengths)
    with open_job(job) as opened:
        stores = _open_stores(places, opened.run, opened.pictures, opened.columns)
        for line in opened.lines:
            progress.say(line)
        yield Station(opened.job, opened.engine, opened.source, stores, list(places.values()), progress)


@contextlib.contextmanager
def open_job(job: Job) -> Iterator[Opened]:
    """Open all but the stores for a `with` block; errors are those of `evaluate`."""
    config = job.config
    places = run_folders(job.out, config.strengths)
    job = replace(job, data=replace(job.data, loader=_loader(job.data, places.values())))
    data = job.data
    subject: Subject = load_classifier(job.model) if isinstance(job.model, ModelSpec) else job.model
    unchecked = _unchecked(subject)
    held, where = _bank(subject, job.bank)
    check_strengths(held, config.strengths, subject.preprocessing.input_size, subject.name)
    folders = bank_folders(held, where, data, subject.num_classes, config.seed)
    pictures = select_pictures(folders, held, config)
    choice = replace(config.engine, pairs=config.batch_size)
    with open_engine(choice, subject) as engine:  # before anything is written: a failing engine leaves no RUN
        source = open_source(data, subject.preprocessing, engine.torch_device)
        run = _run(engine, source, (held, where), folders, job)
        columns = [CLEAN] if job.clean_only else _rows(held)
        rows = scaled_rows(held, config.strengths, config.seed) if isinstance(held, OccluderBank) else None
        del held  # of 1,000 classes it takes 600 MB
        if rows is not None:
            load_rows(engine, rows, config.strengths)
        del rows
        of_model = (unchecked, subject.doubt, subject.preprocessing.doubt)
        of_data = (beside_the_classes(data), mapped_elsewhere(data, folders, subject.num_classes))
        why = f"{engine.reason}; {engine.how}"
        of_engine = f"engine {engine.name} on {engine.device}, {engine.precision}: {why}"
        lines = filter(None, (*of_model, *of_data, of_engine, f"loader {source.name}: {source.how}"))
        yield Opened(job, engine, source, run, pictures, columns, list(lines))


def bank_of_reference(
    subject: Subject, bank: OccluderBank | Path | None, reference: Subject
) -> OccluderBank | Path | None:
    """Return the bank as another export of a model takes it: None where that embeds the same one.

    Raises
    ------
    InputError
        The other export has other weights, preprocessing or another bank, or failed its check.
    """
    _unchecked(reference)
    own = bank if reference.embedded_bank() is None else None
    if own is None and reference.embedded_bank() is None:
        raise InputError(f"{reference.name}: takes a bank, and {subject.name} embeds one; export it with that bank")
    ours, others = (
        {
            "model": one.model,
            "weights": one.weights_hash,
            "preprocessing": one.preprocessing,
            "bank": _bank(one, of_one)[0].hash,
        }
        for one, of_one in ((subject, bank), (reference, own))
    )
    if differing := [name for name in ours if ours[name] != others[name]]:
        raise InputError(f"{reference.name}: has another {' and '.join(differing)} than {subject.name}")
    return own


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
    job: Job,
) -> Run:
    """Describe the run for its store."""
    subject, (held, where), data, config = engine.subject, bank, job.data, job.config
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
        first = next(iter(opened.values()), None)
        sizes = None if first is None else (first.block, first.shard)
        opened[strength] = _open_store(place, own, pictures, rows, sizes)
    stores = [opened[strength] for strength in places]
    for store in stores:
        if (store.block, store.shard) != (stores[0].block, stores[0].shard):
            raise InputError(f"{store.path}: has other blocks than {stores[0].path}; remove it")
    return stores


def _open_store(
    out: Path, run: Run, pictures: Sequence[Picture], rows: Sequence[int], sizes: tuple[int, int] | None
) -> RunStore:
    """Create the run's store, or open it to resume; raise `InputError` if it holds another run.

    `sizes` as of `RunStore.create`.
    """
    paths, labels, fit = ([picture[i] for picture in pictures] for i in range(3))
    if not (out / STORE).exists():
        try:
            given: Any = {"paths": paths, "labels": labels, "fit": fit, "occluders": rows, "sizes": sizes}
            return RunStore.create(out, run, **given)
        except OSError:
            if not (out / STORE).exists():  # otherwise another worker was faster
                raise
    store = RunStore.open(out, writable=True)
    stored, wanted = plain(store.run), plain(run)
    differing = [key for key in wanted if key not in _MOVABLE and stored[key] != wanted[key]]
    if differing:
        listed = "; ".join(f"{k} {str(stored[k])[:60]}, not {str(wanted[k])[:60]}" for k in differing[:3])
        raise InputError(f"{out}: holds a run of another configuration ({listed}); use another --out or remove it")
    same = store.paths == paths and store.labels.tolist() == labels and store.fit.tolist() == fit
    if not same or store.occluders.tolist() != rows:
        raise InputError(f"{out}: holds a run over other pictures, labels or classes; use another --out or remove it")
    store.update_run(replace(run, gfo_version=store.run.gfo_version))
    return store
