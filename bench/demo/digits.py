"""The demo's embedded material: scikit-learn's digits as a data folder, and the two CNNs trained on it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from ...export.files import atomic_folder, save_tensors
from ...export.models.digits_networks import DIGITS_NETWORKS
from ...export.models.digits_recipe import (
    DIGITS_CLASSES,
    DIGITS_INPUT_SIZE,
    DIGITS_MEAN,
    DIGITS_RECIPES,
    DIGITS_STD,
    DigitsRecipe,
    digits_weights_path,
)

VAL_PER_DIGIT: Final = 50
_SPLIT_SEED = 0
_LARGEST_GREY = 16  # of scikit-learn's pictures


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one CPU thread inside the block.

    Layers as small as the demo's gain little from a second thread, and on busy cores lose a factor of ten to threads
    that wait for each other. Besides, sums then split the same way, whatever the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_digits(root: Path) -> Path:
    """Write the digits as a data folder with a fixed, stratified split; where they are already, do nothing.

    The 1,797 grey pictures of 8×8 become RGB PNGs of 32×32 (bilinear) at `root/{train,val}/<digit>/NNNN.png`: 50 of
    each digit for val, the other 1,297 for train; NNNN is the index in scikit-learn's set. `root/classes.json` maps
    folders to model outputs. The folder appears whole or not at all.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    if _is_written(root):
        return root
    # Another run that is faster writes the same pictures.
    with atomic_folder(root, accept=lambda: _is_written(root)) as partial:
        _write_pictures(partial)
        (partial / "classes.json").write_text(json.dumps({str(digit): digit for digit in range(DIGITS_CLASSES)}))
    return root


def _is_written(root: Path) -> bool:
    return (root / "classes.json").is_file()


def _write_pictures(root: Path) -> None:
    grey, labels = _scikit_digits()
    held_out = _val_indices(labels)
    for index, (picture, digit) in enumerate(zip(grey, labels, strict=True)):
        folder = root / ("val" if index in held_out else "train") / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(np.round(picture * (255 / _LARGEST_GREY)).astype(np.uint8))
        large = small.resize((DIGITS_INPUT_SIZE, DIGITS_INPUT_SIZE), Image.Resampling.BILINEAR)
        large.convert("RGB").save(folder / f"{index:04d}.png")


def _scikit_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return grey values 0 … 16 as [1797, 8, 8], and the digits [1797]."""
    digits: Any = load_digits()  # a Bunch: its attributes have no types
    return digits.images, digits.target


def _val_indices(labels: NDArray[np.int64]) -> set[int]:
    # RandomState, not default_rng: NumPy promises never to change its stream, so the split stays what it is.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    return {int(i) for digit in range(DIGITS_CLASSES) for i in order[labels[order] == digit][:VAL_PER_DIGIT]}


def read_split(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read one split of the digits folder: pictures uint8 [N, 3, 32, 32], digits int64 [N]."""
    files = sorted((root / split).glob("*/*.png"))
    pictures = np.stack([_read_picture(file) for file in files])
    digits = torch.tensor([int(file.parent.name) for file in files])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), digits


def _read_picture(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        return np.asarray(picture)


def digits_weights(name: str, root: Path) -> Path:
    """Return the cached weights of a demo network; train it first where there are none.

    Parameters
    ----------
    name
        `digits-resnet` or `digits-vgg`.
    root
        Folder that `write_digits` wrote; only its train split is read.

    Returns
    -------
    Path
        A safetensors state dict for `DIGITS_NETWORKS[name]()`.
    """
    path = digits_weights_path(name)
    if not path.is_file():
        network = train_network(name, *read_split(root, "train"))
        save_tensors(path, network.state_dict())
    return path


def train_network(name: str, pictures: Tensor, digits: Tensor) -> nn.Module:
    """Train a demo network from scratch by its recipe; weights repeat on the same kind of CPU.

    Parameters
    ----------
    name
        A key of `DIGITS_RECIPES`.
    pictures
        uint8 [N, 3, 32, 32].
    digits
        int64 [N], 0 … 9.

    Returns
    -------
    Module
        In evaluation mode, float32, on the CPU.
    """
    recipe = DIGITS_RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = DIGITS_NETWORKS[name]().to(memory_format=torch.channels_last).train()
    with one_thread():
        _fit(network, normalise(pictures), digits, recipe)
    return network.eval().to(memory_format=torch.contiguous_format)


def _fit(network: nn.Module, pictures: Tensor, digits: Tensor, recipe: DigitsRecipe) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    steps = recipe.epochs * (len(digits) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    for x, y in _batches(pictures, digits, recipe):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        schedule.step()


def normalise(pictures: Tensor) -> Tensor:
    """Turn uint8 [N, 3, H, W] into the float32 that the demo networks take, channels-last."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (DIGITS_MEAN, DIGITS_STD))
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _batches(pictures: Tensor, digits: Tensor, recipe: DigitsRecipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches of shuffled epochs; the pictures of one batch share a random shift, black moving in."""
    generator = torch.Generator().manual_seed(recipe.seed)
    shift, side = recipe.shift, pictures.shape[-1]
    padded = F.pad(pictures, (shift,) * 4, value=float(pictures.min()))
    for _ in range(recipe.epochs):
        order = torch.randperm(len(digits), generator=generator)
        for batch in order.split(recipe.batch_size)[: len(digits) // recipe.batch_size]:
            top, left = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
            yield padded[batch, :, top : top + side, left : left + side], digits[batch]
