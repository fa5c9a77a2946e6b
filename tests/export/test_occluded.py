"""The occluded classifier against the formula written out around the user's own unfolded network."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from gfo.export.classifier import FrozenClassifier
from gfo.export.occluded import OccludedClassifier

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
