"""Passes through the network: every pair once however they are cut, and what was measured is remembered."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gfo.engine.devices import fitting_memory
from gfo.engine.engines import ENGINES
from gfo.engine.engines.choice import EngineChoice, open_engine
from gfo.engine.evaluation import passes as passes_module
from gfo.engine.evaluation.passes import Passes, choose_passes, default_pairs, default_passes, passes_to_try
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.tensorrt.library import LIBRARIES


@given(
    pictures=st.lists(st.integers(0, 40), unique=True, max_size=40),
    rows=st.integers(1, 30),
    pairs=st.integers(1, 70),
    square=st.booleans(),
)
def test_every_pair_once(pictures: list[int], rows: int, pairs: int, square: bool) -> None:
    pieces = list(Passes(pairs, square).pieces(torch.tensor(pictures, dtype=torch.int64), rows))
    assert all(0 < len(piece) <= pairs for piece in pieces)
    assert sorted(pair for piece in pieces for pair in piece.tolist()) == sorted(
        p * rows + r for p in pictures for r in range(rows)
    )


@pytest.mark.parametrize(("size", "pairs"), [(28, 64), (64, 64), (96, 32), (160, 8), (224, 8), (4096, 8)])
def test_without_a_measurement_large_pictures_go_in_small_passes(size: int, pairs: int) -> None:
    assert default_pairs("cpu", size) == pairs
    assert default_pairs("cuda", size) == 64


def test_what_is_measured_is_remembered(
    tiny_classifier: FrozenClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))
    with open_engine(EngineChoice("torch", "fp32", "cpu"), tiny_classifier) as engine:
        engine.load_bank(torch.zeros(3, 16, 16, 3))
        assert choose_passes(engine, 4, 10**6, 7) == (Passes(7, False), "requested")
        assert choose_passes(engine, 4, 10, None)[0] == default_passes(engine) == Passes(64, False)
        assert not list(tmp_path.rglob("*.json"))
        chosen, why = choose_passes(engine, 4, 10**6, None)
        assert chosen in passes_to_try(engine)
        assert why.endswith("pairs/s")
        monkeypatch.setattr(passes_module, "measured_passes", None)
        assert choose_passes(engine, 4, 10, None) == (chosen, "measured before")
        (noted,) = tmp_path.rglob("*.json")
        noted.write_text("{")
        assert choose_passes(engine, 4, 10, None)[0] == default_passes(engine)


@pytest.mark.parametrize("name", [name for name in ENGINES.names if name != "trt"])
def test_the_bare_network_runs_in_both_layouts(tiny_classifier: FrozenClassifier, name: str) -> None:
    with open_engine(EngineChoice(name, "fp32", "cpu"), tiny_classifier) as engine:
        calls = engine.bare(3)
        assert sorted(calls) == ["NCHW", "NHWC"]
        for call in calls.values():
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.skipif(not any(map(find_spec, LIBRARIES)), reason="no TensorRT here")
def test_the_bare_network_runs_on_trt(tiny_classifier: FrozenClassifier) -> None:
    with open_engine(EngineChoice("trt", "fp16"), tiny_classifier) as engine:
        assert engine.fixed_pairs
        assert engine.bare(engine.fixed_pairs + 1) == {}
        engine.bare(engine.fixed_pairs)["NHWC"]()


def test_memory_that_is_full_names_the_option() -> None:
    with (
        pytest.raises(InputError, match=r"^--pass-size 8: does not fit into the memory of GPU; use a smaller one$"),
        fitting_memory(8, "GPU", "--pass-size"),
    ):
        raise torch.OutOfMemoryError
