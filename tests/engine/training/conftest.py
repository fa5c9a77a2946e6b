"""Training that is killed, and few threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from gfo.engine.training.optimizers import OPTIMIZERS


class _Stopped(BaseException):
    """Stands for a kill at any moment."""


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Bit-for-bit tests compare runs on one machine; one thread is enough for pictures of 12 pixels."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[None]]:
    """Kill what trains in the block, in the step after the next `steps`; with `at_most` it may end before."""

    @contextlib.contextmanager
    def killed(steps: int, *, at_most: bool = False) -> Iterator[None]:
        left = steps

        def counted(original: Callable[..., None]) -> Callable[..., None]:
            def step(*args: Any) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise _Stopped
                original(*args)

            return step

        with monkeypatch.context() as patch:
            for optimizer in OPTIMIZERS.classes():
                patch.setattr(optimizer, "step", counted(optimizer.step))
            with contextlib.suppress(_Stopped) if at_most else pytest.raises(_Stopped):
                yield

    return killed
