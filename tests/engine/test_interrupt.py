"""Ctrl-C at real commands in processes of their own: code 130, one line, and the same bits in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from gfo.engine.evaluation.store import RunStore

Command = Callable[..., list[object]]
Run = Callable[..., tuple[int, str, str]]

_HOMES = {"gfo-train": "train", "gfo-eval": "evaluate"}
# A shell without job control starts background jobs with SIGINT ignored, and a child inherits that.
_CODE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from gfo.engine.commands.{} import main
main()
"""


def interrupt(words: list[object], at_pass: int, tmp_path: Path) -> tuple[int, str, str]:
    """Start a command, press Ctrl-C in the network's pass `at_pass`: exit code, standard output, standard error."""
    held = tmp_path / "held"
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE.format(_HOMES[str(words[0])]), *map(str, words[1:])],
        env={**os.environ, "GFO_TINY_HOLD_AT": str(at_pass), "GFO_TINY_HELD": str(held)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not held.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def is_one_line_at_the_end(err: str, name: str) -> bool:
    line = f"{name}: interrupted; what is finished is kept, and the same command resumes\n"
    return err.endswith(line) and err.count(name) == 1 and "Traceback" not in err


@pytest.mark.parametrize("at_pass", [11, 19], ids=["in the second epoch", "in the second class"])
def test_an_interrupted_training_resumes_to_the_same_bank(
    at_pass: int, tiny_data: Path, tmp_path: Path, train: Command, run: Run
) -> None:
    # 6 passes while the network is frozen, 2 before it trains, then 2 steps an epoch, 4 epochs a class
    options = ("--epochs", 4, "--batch-size", 3, "--classes-together", 1)
    command = train(tiny_data, tmp_path / "bank.safetensors", *options)
    code, out, err = interrupt(command, at_pass, tmp_path)
    assert (code, out) == (130, "")
    assert is_one_line_at_the_end(err, "gfo-train")
    # Ant, the first class, is output 3, and bee is output 0.
    made = {11: {"epoch-3.safetensors"}, 19: {"3.safetensors", "epoch-0.safetensors"}}[at_pass]
    parts = {path.name for path in (tmp_path / "bank.safetensors.parts").iterdir()}
    assert parts == made | {"config.json", "lock"}
    assert run(*command)[0] == 0
    assert run(*train(tiny_data, tmp_path / "whole.safetensors", *options))[0] == 0
    assert (tmp_path / "bank.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not (tmp_path / "bank.safetensors.parts").exists()


def test_an_interrupted_evaluation_resumes_to_the_same_answers(
    own_data: Path, tiny_bank: Path, tmp_path: Path, evaluate: Command, run: Run
) -> None:
    for folder in (own_data / "val").iterdir():
        for i in range(94):  # 300 pictures in all: a block of 256 and one of 44
            (folder / f"more-{i}.jpg").symlink_to(folder / "0.jpg")
    command = evaluate(own_data, tiny_bank, tmp_path / "run")
    # 6 passes while the network is frozen, then parts of 32 pictures x 5 rows, each in passes of 64, 64 and 32 pairs
    code, out, err = interrupt(command, 6 + 8 * 3 + 2, tmp_path)
    assert (code, out) == (130, "")
    assert is_one_line_at_the_end(err, "gfo-eval")
    assert RunStore.open(tmp_path / "run").pending() == [256]
    assert not (tmp_path / "run" / "summary.json").exists()
    code, out, err = run(*command)
    assert code == 0
    assert "resuming: 256 of 300 pictures are done" in err
    assert run(*evaluate(own_data, tiny_bank, tmp_path / "whole"))[0] == 0
    for name in ("prediction", "rank", "margin"):
        resumed, whole = (
            zarr.open_array(tmp_path / out / "predictions.zarr" / name, mode="r")[:] for out in ("run", "whole")
        )
        np.testing.assert_array_equal(resumed, whole)


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    """One line, and none of the libraries that were loaded by then adds another."""
    words = ["--model", "python:gfo_tiny:network", "--data", tmp_path, "--epsilon", 8, "--out", tmp_path / "out"]
    command = [sys.executable, "-c", _CODE.format("train"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"gfo-train: {tmp_path}")
    assert done.stderr.count("\n") == 1
