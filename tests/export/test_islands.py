"""Float32 islands: which modules become one, what stays in half precision, and the logits and gradients with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import local_response_norm  # PyTorch lacks it for half precision on CPUs

from gfo.export.classifier import DTYPES, FrozenClassifier
from gfo.export.errors import InputError
from gfo.export.occluded import OccludedClassifier
from gfo.export.preprocessing import Preprocessing

CPU = torch.device("cpu")
PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FAILED = "NotImplementedError: \"avg_pool3d_out_frame\" not implemented for 'BFloat16'"


class LocalResponseNorm(nn.LocalResponseNorm):
    """Not rewritten as a convolution: a subclass may compute something else."""


class Block(nn.Module):
    """As in GoogLeNet; `norm` may be any module, and the activation writes into what it is given."""

    def __init__(self, inputs: int, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(inputs, 8, 3, padding=1), nn.SiLU(inplace=True), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.conv(x)))


class Scaled(nn.Module):
    """Fails, and has a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, 3, alpha=0.1) * self.weight


class Called(nn.Module):
    """Calls the operation itself, between modules that have weights and some that have none."""

    def __init__(self, within: Callable[[Tensor], Tensor] = lambda x: local_response_norm(x, 3, alpha=0.1)) -> None:
        super().__init__()
        self.stem, self.layers = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ModuleList([nn.Conv2d(8, 8, 3), nn.SiLU(inplace=True)]),
        )
        self.within = within

    def forward(self, x: Tensor) -> Tensor:
        x = self.within(self.stem(x))
        for layer in self.layers:
            x = layer(x)
        return x


class Reused(nn.Module):
    """One normalisation in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = LocalResponseNorm(3, alpha=0.1)
        self.second = nn.Conv2d(8, 8, 3)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.second(self.norm(self.first(x))))


class TakesApart(Called):
    """Uses the weights of a module without calling it: only all of it together runs in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(nn.functional.conv2d(x, self.stem.weight) * 1, 3, alpha=0.1)


class Overwrites(nn.Module):
    """Gives its result back in the memory of its input, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        x.copy_(local_response_norm(x.clone(), 3, alpha=0.1))
        return x


class Ignored(nn.Module):
    """Reads what a module wrote into its input: of a copy that was cast up it would see nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.writes = nn.Conv2d(3, 8, 3), Overwrites()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.writes(x)
        return x


class BackwardLacks(torch.autograd.Function):
    """Runs in half precision, but its gradient does not."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return local_response_norm(grads[0], 2, alpha=0.0) * 2


class Doubled(nn.Module):
    """See `BackwardLacks`."""

    def forward(self, x: Tensor) -> Tensor:
        return BackwardLacks.apply(x)


def frozen(features: nn.Module) -> FrozenClassifier:
    """The features behind a head of five outputs, with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
        network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return FrozenClassifier.from_module(network, Preprocessing(8, 8), model="mine")


def check(classifier: FrozenClassifier, model: OccludedClassifier) -> None:
    """Compare logits and their gradient with float64.

    Weights and values are rounded to 2⁻⁸ of their size at most, in each of the up to five layers, forwards and
    backwards, and errors add up as their squares do. Activations are smooth: a ReLU that opens by rounding would be a
    large error.
    """
    found, truth = (PICTURES.clone().to(dtype).requires_grad_() for dtype in (DTYPES[model.precision], torch.float64))
    upstream = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double()
    logits, wanted = model.network(found), classifier.network_as("fp32").double()(truth)
    assert logits.dtype == found.dtype
    logits.double().backward(upstream)
    wanted.backward(upstream)
    assert found.grad is not None
    assert truth.grad is not None
    for ours, right in ((logits.detach().double(), wanted.detach()), (found.grad.double(), truth.grad)):
        rms = float((ours - right).square().mean().sqrt() / right.square().mean().sqrt())
        assert 0 < rms < 3 * (2 * 5) ** 0.5 * 2**-8


CASES: dict[str, tuple[Callable[[], nn.Module], list[str], str]] = {
    # features, weights in float32, and what the line says
    "modules": (
        lambda: nn.Sequential(*(Block(i, LocalResponseNorm(3, alpha=0.1)) for i in (3, 8))),
        [],
        f"LocalResponseNorm 0.0.norm, 0.1.norm ({FAILED})",
    ),
    "many": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), *(LocalResponseNorm(3) for _ in range(6))),
        [],
        f"LocalResponseNorm 0.1, 0.2, 0.3, 0.4 and 2 more ({FAILED})",
    ),
    "with weights": (lambda: Block(3, Scaled()), ["0.norm.weight"], f"Scaled 0.norm ({FAILED})"),
    "own operations": (Called, [], f"the own operations of Called 0 ({FAILED})"),
    "used twice": (Reused, [], f"LocalResponseNorm 0.norm ({FAILED})"),
    "a module as a whole": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3), TakesApart()),
        ["0.1.layers.0.bias", "0.1.layers.0.weight", "0.1.stem.bias", "0.1.stem.weight"],
        f"TakesApart 0.1 ({FAILED})",
    ),
    "written into": (Ignored, [], f"the own operations of Ignored 0 ({FAILED})"),
    "backwards": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Doubled()), [], f"Doubled 0.1 ({FAILED})"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_smallest_modules_that_fail_run_in_float32(case: str) -> None:
    build, full, said = CASES[case]
    classifier = frozen(build())
    model = OccludedClassifier(classifier, "bf16").settled(CPU, gradient=True)
    assert model.islands == f"in float32, as bf16 fails on cpu: {said}"
    kinds = {name: tensor.dtype for name, tensor in model.network.named_parameters()}
    assert sorted(name for name, kind in kinds.items() if kind == torch.float32) == full
    assert set(kinds.values()) <= {torch.float32, torch.bfloat16}
    state = dict(classifier.network.named_parameters())
    assert all(torch.equal(model.network.get_parameter(name), state[name]) for name in full)  # never rounded
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not any(module.training for module in model.network.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in classifier.network.modules())
    check(classifier, model)


def test_fp16_has_islands_too_and_evaluation_needs_none_for_a_gradient() -> None:
    classifier = frozen(CASES["modules"][0]())
    model = OccludedClassifier(classifier, "fp16").settled(CPU)
    assert "as fp16 fails on cpu: LocalResponseNorm 0.0.norm, 0.1.norm (NotImpl" in model.islands
    check(classifier, model)
    backwards = frozen(CASES["backwards"][0]())
    assert OccludedClassifier(backwards, "bf16").settled(CPU).islands == ""
    assert OccludedClassifier(frozen(CASES["modules"][0]()), "fp32").settled(CPU, gradient=True).islands == ""


def test_what_would_leave_nothing_in_half_precision_is_refused_and_nothing_is_changed() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.weight = LocalResponseNorm(2), nn.Parameter(torch.ones(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return local_response_norm(x, 2).mean(dim=(2, 3)) @ self.weight

    model = OccludedClassifier(FrozenClassifier.from_module(Alone(), Preprocessing(8, 8), model="mine"), "bf16")
    with pytest.raises(InputError, match=r"^mine: fails at bf16 on cpu \(NotImpl.*; use --precision fp32$"):
        model.settled(CPU)
    assert model.islands == ""
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.network.modules())


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_during_the_search_is_no_reason_for_an_island(error: Exception) -> None:
    class Fills(nn.Module):
        """Fails in half precision, and when it is tried alone there is no memory any more."""

        tried = 0

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.bfloat16:
                type(self).tried += 1
                raise error if type(self).tried > 1 else NotImplementedError("no bf16")
            return x

    model = OccludedClassifier(frozen(nn.Sequential(nn.Conv2d(3, 8, 3), Fills())), "bf16")
    with pytest.raises(type(error), match=r"full|allocate"):
        model.settled(CPU)
