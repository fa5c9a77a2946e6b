"""Everything that reads a file, with a file for it: what damage to that file may lead to.

`OWN` readers take what gfo itself has written and later believes: damage gives the same result, or an error that says
so. `FOREIGN` ones take what people bring, which has no checksum: damage gives any result, or such an error.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import zarr
from harness import files_below
from PIL import Image
from safetensors.torch import save_file

from gfo.engine.data.decoded_cache import DecodedCache
from gfo.engine.data.files import PictureFiles
from gfo.engine.data.folders import list_classes
from gfo.engine.data.pillow import PillowSource, decode
from gfo.engine.data.spec import DataSpec
from gfo.engine.data.webdataset import tar_files, tar_pictures
from gfo.engine.engines.graphs import cached_graph
from gfo.engine.evaluation.store import RunStore
from gfo.engine.evaluation.summary import Run, read_summary
from gfo.engine.machine import remember, remembered
from gfo.engine.training.config import TrainConfig
from gfo.engine.training.optimizers import OPTIMIZERS
from gfo.engine.training.train import train
from gfo.export.artefact import Artefact
from gfo.export.bank import OccluderBank
from gfo.export.classifier import FrozenClassifier, hash_state
from gfo.export.errors import InputError, Unreachable
from gfo.export.models.weights import read_state
from gfo.export.preprocessing import Preprocessing
from gfo.kernels.score import score

REFUSALS: Final = (InputError, Unreachable)
_PREPROCESSING: Final = Preprocessing(16, 18)


class NotDone(InputError):
    """A store that says of itself that blocks are missing."""


@dataclass(frozen=True)
class World:
    """What the files are of."""

    classifier: FrozenClassifier
    bank: OccluderBank
    run: Run
    data: Path
    artefact: Callable[[], Path]
    """Exports one; takes seconds."""


@dataclass(frozen=True)
class Reader:
    """A reader and its files.

    Attributes
    ----------
    write
        Writes its files into a folder, seeded.
    read
        Reads them; what it returns can be compared.
    fresh
        Whether reading changes the files, so that each try needs new ones.
    """

    write: Callable[[World, Path], None]
    read: Callable[[World, Path], Any]
    fresh: bool = False


# ---- banks, summaries, stores


def _write_bank(world: World, folder: Path) -> None:
    world.bank.save(folder / "bank.safetensors")


def _read_bank(world: World, folder: Path) -> Any:
    bank = OccluderBank.load(folder / "bank.safetensors")
    return bank.hash, bank.header, bank.fitted.tolist(), bank.held_out.tolist()


def _write_store(world: World, folder: Path) -> None:
    labels = [0] * 40 + [3] * 24
    paths = [f"val/{label}/{i}.png" for i, label in enumerate(labels)]
    rows = [-1, *world.bank.class_ids, -2]
    store = RunStore.create(folder, world.run, paths=paths, labels=labels, fit=[0] * 64, occluders=rows)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, 64, store.block):
        stop = store.end(start)
        pairs = torch.tensor(labels[start:stop]).repeat_interleave(len(rows))
        found = score(torch.randn(len(pairs), 5, generator=generator), pairs)
        store.write(start, found, {1: "OSError: broken"}, stamps=list(range(1, stop - start + 1)))


def _read_store(world: World, folder: Path) -> Any:
    store = RunStore.open(folder)
    if store.pending() or store.damaged():
        raise NotDone("not done")
    group = zarr.open_group(store.path, mode="r")
    arrays = {name: repr(array[:].tolist()) for name, array in group.arrays() if name != "stamp"}  # type: ignore[union-attr]
    return arrays, store.run, store.readable().tolist(), store.quarantined()


def _read_summary(world: World, folder: Path) -> Any:
    return read_summary(folder / "summary.json")


# ---- artefacts


def _write_artefact(world: World, folder: Path) -> None:
    for path in world.artefact().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def _read_artefact(world: World, folder: Path) -> Any:
    found = Artefact.load(folder)
    bank = found.embedded_bank()
    assert bank is not None
    graph = sha256(found.path.read_bytes()).hexdigest()
    return found.manifest, graph, bank.header, bank.hash, bank.fitted.tolist(), bank.held_out.tolist()


# ---- checkpoints


class _Stopped(Exception):
    """Raised to end a training in the middle."""


def _train(world: World, folder: Path) -> bytes:
    config = TrainConfig(epsilon=8.0, epochs=2, batch_size=6, classes_together=2, precision="fp32")
    data = DataSpec(world.data, "train", workers=1)
    train(world.classifier, data, folder / "bank.safetensors", config)
    return (folder / "bank.safetensors").read_bytes()


def _write_checkpoint(world: World, folder: Path) -> None:
    """Two classes are done, and the first epoch of the third."""
    kind: Any = OPTIMIZERS["momentum"]
    step, left = kind.step, 6

    def stopping(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Stopped
        step(*arguments)

    kind.step = stopping
    try:
        _train(world, folder)
    except _Stopped:
        pass
    finally:
        kind.step = step
    assert {path.name for path in files_below(folder)} >= {"3.safetensors", "0.safetensors", "epoch-4.safetensors"}


# ---- the cache


def _pictures(world: World, folder: Path) -> list[list[int]]:
    files = PictureFiles(world.data)
    paths = sorted(path.relative_to(world.data).as_posix() for path in (world.data / "val").glob("*/*"))
    source = DecodedCache(PillowSource(files, _PREPROCESSING, 1, torch.device("cpu")), files, _PREPROCESSING)
    return [block.images.flatten().tolist() for block in source.blocks(paths, 6)]


def _graph(world: World, folder: Path) -> bytes:
    content = random.Random(0).randbytes(4096)
    return cached_graph(
        world.classifier, "fp32", "a form", lambda path: path.write_bytes(content), folder
    ).path.read_bytes()


def _write_choice(world: World, folder: Path) -> None:
    remember(folder / "choice.json", {"pairs": 64, "together": True, "cores": 2})


def _read_choice(world: World, folder: Path) -> Any:
    # A choice that is lost is measured again.
    found = remembered(folder / "choice.json", lambda facts: (facts["pairs"], facts["together"], facts["cores"]))
    return found or (64, True, 2)


OWN: Final[dict[str, Reader]] = {
    "bank": Reader(_write_bank, _read_bank),
    "store": Reader(_write_store, _read_store),
    "artefact": Reader(_write_artefact, _read_artefact),
    "checkpoint": Reader(_write_checkpoint, _train, fresh=True),
    "decoded cache": Reader(lambda world, folder: None, _pictures, fresh=True),
    "graph in the cache": Reader(lambda world, folder: None, _graph, fresh=True),
    "remembered choice": Reader(_write_choice, _read_choice),
}


# ---- what people bring


def _write_class_map(world: World, folder: Path) -> None:
    for name in ("ant", "bee", "cät"):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "train" / name / "0.png").touch()
    (folder / "classes.json").write_text(json.dumps({"ant": 3, "bee": 0, "cät": 4}, ensure_ascii=False))


def _read_class_map(world: World, folder: Path) -> Any:
    return list_classes(DataSpec(folder, "train"), "all", 5, 0)


def _write_tar(world: World, folder: Path) -> None:
    (folder / "val").mkdir()
    with tarfile.open(folder / "val" / "a.tar", "w") as tar:
        for i, path in enumerate(sorted((world.data / "val").glob("*/*"))[:4]):
            for name, content in ((f"{i}{path.suffix}", path.read_bytes()), (f"{i}.cls", str(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _read_tar(world: World, folder: Path) -> Any:
    files = PictureFiles(folder)
    found = tar_pictures(files, tar_files(folder / "val"))
    return {path: _decoded(files, path) for paths in found.values() for path in paths}


def _decoded(files: PictureFiles, path: str) -> Any:
    found = decode(files, path, files.fetch(path), _PREPROCESSING)
    if isinstance(found, str):
        assert found
        return found
    assert found.shape == (16, 16, 3)
    assert found.dtype == np.uint8
    return found.tobytes()


def _write_pictures(world: World, folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8))
    for name in ("a.jpg", "b.png", "c.gif", "d.webp", "e.tif", "f.bmp", "g.ppm"):
        picture.save(folder / name)
    picture.save(folder / "h.jpg", progressive=True)
    picture.convert("P").save(folder / "i.png", transparency=0)


def _read_pictures(world: World, folder: Path) -> Any:
    files = PictureFiles(folder)
    return {path.name: _decoded(files, path.name) for path in files_below(folder)}


def _write_weights(world: World, folder: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in world.classifier.network.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    torch.save(state, folder / "weights.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "checkpoint.pth")


def _read_weights(world: World, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about what it is given
        return [hash_state(read_state(path, "a model")[0]) for path in files_below(folder)]


FOREIGN: Final[dict[str, Reader]] = {
    "class map": Reader(_write_class_map, _read_class_map),
    "tar file": Reader(_write_tar, _read_tar),
    "pictures": Reader(_write_pictures, _read_pictures),
    "weights": Reader(_write_weights, _read_weights),
}
