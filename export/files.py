"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an `OSError` from within name `path`: a failed write (a full disk) does not say what it wrote."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def usual_mode(path: Path) -> None:
    """The mode of a new file or folder: some are born readable by their owner alone, and groups share banks."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it into place at the end, remove it on an error.

    Parent folders are made. Raises `OSError`, which names `path`, where they cannot be or the disk is full; one that
    names another file, raised while the temporary one is written, goes on naming that.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        usual_mode(partial)
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None or Path(error.filename) == partial:
            error.filename = str(path)
        raise
    finally:
        with naming(path):
            partial.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all. Raises `OSError`, which names `path`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as partial:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
        except SafetensorError as error:  # a full disk, too, in safetensors' own kind
            raise OSError(errno.EIO, str(error)) from error
