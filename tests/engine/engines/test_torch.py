"""The torch engine gives the same logits by grid, by pair list and with either implementation of the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gfo.engine.engines.torch import TorchEngine, TorchOptions
from gfo.export import occluded
from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing
from gfo.kernels.impl import Impl
from gfo.kernels.pairs import Grid, Pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=G)
BANK = torch.randn(2, 16, 16, 3, generator=G) * 20
GRID = torch.tensor([[0, 0, 0, 2, 2, 2], [0, 1, 2, 0, 1, 2]])


def logits(classifier: FrozenClassifier, impl: Impl, pairs: Tensor) -> Tensor:
    with TorchEngine(classifier, "fp32", DEVICE, TorchOptions(impl=impl)) as engine:
        engine.load_bank(BANK)
        return engine.infer(IMAGES, pairs[0].contiguous(), pairs[1].contiguous()).cpu()


@pytest.mark.parametrize(("pairs", "grids"), [(GRID, 1), (GRID[:, [0, 4, 2, 5]], 0), (GRID[:, :0], 0)])
def test_kernels_and_references_agree_and_a_grid_goes_as_a_grid(
    tiny_classifier: FrozenClassifier, monkeypatch: pytest.MonkeyPatch, pairs: Tensor, grids: int
) -> None:
    original, calls = occluded.occlude, []

    def counted(pairs: Pairs | Grid, *rest: Any, **how: Any) -> Tensor:
        calls.extend([how["impl"]] * isinstance(pairs, Grid))
        return original(pairs, *rest, **how)

    monkeypatch.setattr(occluded, "occlude", counted)
    wanted = logits(tiny_classifier, "reference", pairs)
    assert calls == []
    found = logits(tiny_classifier, "triton", pairs)
    assert calls == ["triton"] * grids
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(("pair", "word"), [((3, 0), "image_index: entries"), ((0, 3), "occluder_index: entries")])
def test_indices_out_of_range_are_an_error(
    tiny_classifier: FrozenClassifier, impl: Impl, pair: tuple[int, int], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        logits(tiny_classifier, impl, torch.tensor(pair)[:, None])


class Normalised(nn.Module):
    """Ends with an operation that PyTorch lacks for half precision on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.local_response_norm(x, 2).mean(dim=(2, 3))


class Subclassed(nn.LocalResponseNorm):
    """Not rewritten as a convolution, so that half precision lacks it."""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_an_operation_that_the_precision_lacks_is_named_when_the_engine_opens(precision: str, compiled: bool) -> None:
    frozen = FrozenClassifier.from_module(Normalised(), Preprocessing(16, 16), model="mine")
    named = rf"^mine: fails at {precision} on cpu \(NotImplemented.* in local_response_norm, .*; use --precision fp32$"
    with pytest.raises(InputError, match=named), TorchEngine(frozen, precision, "cpu", TorchOptions(compiled=compiled)):
        pass
    with TorchEngine(frozen, "fp32", "cpu") as engine:
        engine.load_bank(BANK)
        assert engine.infer(IMAGES, *GRID).shape == (6, 3)


def test_a_module_that_the_precision_lacks_runs_in_float32_and_the_engine_says_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Subclassed(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    frozen = FrozenClassifier.from_module(network, Preprocessing(16, 16), model="mine")
    for precision, said in (("bf16", "; in float32, as bf16 fails on cpu: Subclassed 1 (NotImpl"), ("fp32", "")):
        with TorchEngine(frozen, precision, "cpu") as engine:
            assert engine.how.startswith("kernels reference: ")
            assert said in engine.how
            assert ("float32" in engine.how) == bool(said)
            engine.load_bank(BANK)
            wanted = occluded.OccludedClassifier(frozen, precision).settled(torch.device("cpu"))(IMAGES, *GRID, BANK)
            assert torch.equal(engine.infer(IMAGES, *GRID), wanted)


def test_code_is_not_loaded_from_where_anybody_could_have_put_it(
    tiny_classifier: FrozenClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)  # takes seconds
    tmp_path.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    said = "everybody may write into the cache.*set TORCHINDUCTOR_CACHE_DIR to a folder of your own"
    with (
        pytest.raises(InputError, match=said),
        TorchEngine(tiny_classifier, "fp32", "cpu", TorchOptions(compiled=True)),
    ):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiled_network_gives_the_same_logits(tiny_classifier: FrozenClassifier) -> None:
    wanted = logits(tiny_classifier, "reference", GRID)
    with TorchEngine(tiny_classifier, "fp32", DEVICE, TorchOptions(compiled=True)) as engine:
        engine.load_bank(BANK)
        for pairs in (GRID, GRID[:, :4]):
            found = engine.infer(IMAGES, pairs[0].contiguous(), pairs[1].contiguous()).cpu()
            torch.testing.assert_close(found, wanted[: pairs.shape[1]], rtol=1e-4, atol=1e-5)
        assert "torch.compile" in engine.how
