"""The occluded classifier against the formula written out around the user's own unfolded network."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from gfo.export.classifier import FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.occluded import OccludedClassifier
from gfo.export.preprocessing import Preprocessing

G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=G)
BANK = torch.randn(2, 16, 16, 3, generator=G) * 40
PAIRS = torch.tensor([[0, 0], [2, 1], [1, 2], [2, 2], [2, 0]]).T.contiguous()


def by_hand(tiny: ModuleType, bank: Tensor) -> Tensor:
    """Pair by pair in float64, BatchNorm unfolded."""
    network = tiny.network().double().eval()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (tiny.PREPROCESSING.mean, tiny.PREPROCESSING.std))
    rows = [torch.zeros_like(bank[0]), *bank]
    inputs = [((IMAGES[i] + rows[j]).clamp(0, 255) / 255 - mean) / std for i, j in PAIRS.T.tolist()]
    return network(torch.stack(inputs).permute(0, 3, 1, 2))


def test_logits_are_those_of_the_formula(tiny_classifier: FrozenClassifier, tiny: ModuleType) -> None:
    logits = OccludedClassifier(tiny_classifier, bank=BANK)(IMAGES, *PAIRS)
    torch.testing.assert_close(logits.double(), by_hand(tiny, BANK.double()), rtol=1e-4, atol=1e-5)
    assert logits.dtype == torch.float32


def test_the_banks_gradient_is_that_of_the_formula(tiny_classifier: FrozenClassifier, tiny: ModuleType) -> None:
    upstream = torch.randn(PAIRS.shape[1], tiny.OUTPUTS, generator=G)
    bank, truth = BANK.clone().requires_grad_(True), BANK.double().requires_grad_(True)
    OccludedClassifier(tiny_classifier)(IMAGES, *PAIRS, bank).backward(upstream)
    by_hand(tiny, truth).backward(upstream.double())
    assert bank.grad is not None
    assert truth.grad is not None
    # The clamps differ at 0 and 255 only, which random occluders do not meet.
    torch.testing.assert_close(bank.grad.double(), truth.grad, rtol=1e-3, atol=1e-6)


def test_a_bank_with_the_call_takes_precedence_and_none_is_an_error(tiny_classifier: FrozenClassifier) -> None:
    embedded = OccludedClassifier(tiny_classifier, bank=BANK)
    free = OccludedClassifier(tiny_classifier)
    assert torch.equal(embedded(IMAGES, *PAIRS, BANK / 2), free(IMAGES, *PAIRS, BANK / 2))
    with pytest.raises(ValueError, match="no bank"):
        free(IMAGES, *PAIRS)


def test_bf16_is_close_and_gives_float32(tiny_classifier: FrozenClassifier, tiny: ModuleType) -> None:
    logits = OccludedClassifier(tiny_classifier, "bf16", BANK)(IMAGES, *PAIRS)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), by_hand(tiny, BANK.double()), rtol=0.1, atol=0.1)


class Breaks(nn.Module):
    """Good until it is told what to raise."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return (x * 1).flatten(1)[:, :9]


FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("error", "wanted", "named"),
    [
        (NotImplementedError("no 'Half' here\nsecond line"), InputError, r"\(NotImplementedError: no 'Half' here, in "),
        (
            KeyError("a"),
            InputError,
            r"^mine: fails at fp16 on cpu \(KeyError: 'a', in forward, .*\); use --precision fp32$",
        ),
        (SystemExit(0), InputError, r"\(SystemExit: 0, in forward, test_occluded\.py line"),
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError, "full"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), torch.OutOfMemoryError, "CUDNN_STATUS_ALLOC"),
        (FULL, RuntimeError, "^.enforce fail"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_a_network_that_fails_is_one_line_and_a_lack_of_memory_stays_one(
    error: BaseException, wanted: type[BaseException], named: str
) -> None:
    model = OccludedClassifier(FrozenClassifier.from_module(Breaks(), Preprocessing(16, 16), model="mine"), "fp16")
    model.settled(torch.device("cpu"), gradient=True)
    assert model(IMAGES, *PAIRS, BANK).is_contiguous()  # though the network returns columns of more
    model.network.error = error  # type: ignore[assignment]
    with pytest.raises(wanted, match=named):
        model(IMAGES, *PAIRS, BANK)
    with pytest.raises(wanted, match=named):
        model.settled(torch.device("cpu"))


@torch.no_grad()
def detached(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :9]


def test_a_network_without_a_gradient_is_one_line() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return detached(x)

    model = OccludedClassifier(FrozenClassifier.from_module(Detached(), Preprocessing(16, 16), model="mine"))
    model.settled(torch.device("cpu"))
    with pytest.raises(
        InputError, match=r"^mine: fails at fp32 on cpu \(RuntimeError: .*for training be differentiable$"
    ):
        model.settled(torch.device("cpu"), gradient=True)


def test_no_pairs_give_no_logits(tiny_classifier: FrozenClassifier, tiny: ModuleType) -> None:
    logits = OccludedClassifier(tiny_classifier, bank=BANK)(IMAGES, PAIRS[:0, 0], PAIRS[:0, 1])
    assert logits.shape == (0, tiny.OUTPUTS)


def test_torch_export_keeps_every_size_open(tiny_classifier: FrozenClassifier) -> None:
    model = OccludedClassifier(tiny_classifier)
    b, p, k = (torch.export.Dim(name) for name in ("b", "p", "k"))
    shapes = ({0: b}, {0: p}, {0: p}, {0: k})
    program = torch.export.export(model, (IMAGES, *PAIRS.clone(), BANK), dynamic_shapes=shapes)
    other = (IMAGES[:2], torch.tensor([1, 0, 1]), torch.tensor([0, 1, 3]), torch.cat([BANK, BANK / 2]))
    torch.testing.assert_close(program.module()(*other), model(*other))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_gives_the_same_logits_and_gradient(tiny_classifier: FrozenClassifier) -> None:
    model = OccludedClassifier(tiny_classifier)
    compiled = torch.compile(model, fullgraph=True)
    results = []
    for run in (model, compiled):
        bank = BANK.clone().requires_grad_()
        logits = run(IMAGES, *PAIRS.clone(), bank)
        logits.square().sum().backward()
        results.append((logits.detach(), bank.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
