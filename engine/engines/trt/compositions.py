"""The two compositions of the trt engine: kernels around a plan of the bare network, or an exported plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ....export.artefact import Artefact
from ....export.cache import cache_dir
from ....export.classifier import DTYPES, FrozenClassifier
from ....export.formats.base import Limits
from ....export.onnx_graph import BANK, INPUTS, NETWORK_INPUT, with_clean_row
from ....export.preprocessing import Preprocessing
from ....export.tensorrt.plan import bare_profile, tensorrt_from_onnx
from ....kernels.occlude import Normalisation, occlude
from ....kernels.pairs import Pairs
from ..graphs import bare_file, is_as_noted, note_file
from .runtime import Plan, check_built_for, check_rows, pairs_within

PAIRS = 64
"""Pairs in a pass where nobody asks for another number."""

Step = Callable[[], Tensor]
"""Runs the pairs that lie in a `FixedPairs`; returns logits float32 [P, C]."""


class FixedPairs:
    """Pair lists of any length through a step that always takes P pairs from the same memory.

    The picture of each pair is copied there as bytes: a few microseconds beside a network's milliseconds. The step
    therefore depends neither on the number of pictures nor on their addresses.

    Attributes
    ----------
    images
        uint8 [P, S, S, 3], the picture of each pair.
    image_index
        int64 [P], 0 … P − 1.
    occluder_index
        int64 [P].
    """

    def __init__(self, pairs: int, size: int, device: torch.device) -> None:
        self.images = torch.zeros(pairs, size, size, 3, dtype=torch.uint8, device=device)
        self.image_index = torch.arange(pairs, device=device)
        self.occluder_index = torch.zeros(pairs, dtype=torch.int64, device=device)

    def run(self, step: Step, images: Tensor, image_index: Tensor, occluder_index: Tensor, logits: Tensor) -> None:
        """Write the logits, float32 [N, C], of a list of N pairs; the last pass is padded with clean pairs."""
        pairs = len(self.images)
        for start in range(0, len(image_index), pairs):
            pictures, occluders = (index[start : start + pairs] for index in (image_index, occluder_index))
            here = len(pictures)
            torch.index_select(images, 0, pictures, out=self.images[:here])
            self.occluder_index[:here] = occluders
            self.occluder_index[here:] = 0  # an index of an earlier bank may be out of range in this one
            logits[start : start + here] = step()[:here]


def around_network(
    network: Callable[[Tensor], Tensor],
    pairs: FixedPairs,
    bank: Tensor,
    preprocessing: Preprocessing,
    precision: str,
    impl: str,
) -> Step:
    """Return the step `occlude` → network → float32 logits.

    Parameters
    ----------
    network
        Takes [P, 3, S, S] in the precision's dtype, channels-last in memory; returns logits [P, C].
    bank
        float32 [K, S, S, 3], pixel units.
    impl
        Implementation of `occlude`, as in `choose_impl`.
    """
    how = Normalisation(preprocessing.scale, preprocessing.shift, DTYPES[precision])

    def step() -> Tensor:
        listed = Pairs(pairs.images, bank, pairs.image_index, pairs.occluder_index)
        pictures = occlude(listed, how, impl=impl, validate=False)
        return network(pictures).to(torch.float32)

    return step


class Composition(ABC):
    """How the trt engine runs its subject."""

    pairs: int
    """Number of pairs in every pass."""

    @abstractmethod
    def plan_file(self, stem: str, scratch: Path) -> tuple[Path, Path | None, str]:
        """Return the plan, the file that keeps its compiled kernels (None: not kept), and where the plan comes from.

        `stem` begins the names of files for this library and GPU; `scratch` is for a plan that is not kept.
        """

    @abstractmethod
    def bank(self, occluders: Tensor) -> Tensor:
        """Return the rows that the step reads, from occluders float32 [K, S, S, 3]."""

    @abstractmethod
    def step(self, plan: Plan, pairs: FixedPairs, bank: Tensor | None, impl: str) -> Step:
        """Return the step of one pass; `bank` is what `bank` returned, None where it is embedded."""


class PlanAroundNetwork(Composition):
    """Kernels around a plan of a classifier's bare network, which is cached by network, precision and P."""

    def __init__(self, classifier: FrozenClassifier, precision: str, pairs: int | None) -> None:
        self._classifier = classifier
        self._precision = precision
        self.pairs = pairs or PAIRS

    def plan_file(self, stem: str, scratch: Path) -> tuple[Path, Path | None, str]:
        """See `Composition.plan_file`: build the plan, unless an earlier run has."""
        graph = bare_file(self._classifier, self._precision, "NHWC", scratch)
        folder = graph.compiled or scratch
        plan = folder / f"{stem}-{self.pairs}.plan"
        jit = None if graph.compiled is None else plan.with_suffix(".jit")
        if is_as_noted(plan):
            return plan, jit, "a plan of an earlier run"
        profile = bare_profile(self._classifier.preprocessing.input_size, self.pairs)
        tensorrt_from_onnx(graph.path, plan, self._precision, profile, timing_cache=folder / f"{stem}.timing")
        note_file(plan)
        return plan, jit, "a plan built now"

    def bank(self, occluders: Tensor) -> Tensor:
        """See `Composition.bank`."""
        return occluders

    def step(self, plan: Plan, pairs: FixedPairs, bank: Tensor | None, impl: str) -> Step:
        """See `Composition.step`."""
        assert bank is not None  # checked by Engine.infer

        def network(pictures: Tensor) -> Tensor:
            return plan({NETWORK_INPUT: pictures.permute(0, 2, 3, 1)})

        return around_network(network, pairs, bank, self._classifier.preprocessing, self._precision, impl)


class ExportedPlan(Composition):
    """The plan of an artefact, which holds preprocessing, occlusion and network.

    Raises
    ------
    InputError
        The manifest does not say what the plan was built for, or it takes more pairs than asked for.
    EngineUnavailable
        The plan was built for another library, version or GPU.
    """

    def __init__(self, artefact: Artefact, library: str, version: str, capability: str, pairs: int | None) -> None:
        self._artefact = artefact
        self._limits: Limits = check_built_for(artefact.folder, artefact.manifest.limits, library, version, capability)
        self.pairs = pairs_within(artefact.folder, self._limits, pairs)

    def plan_file(self, stem: str, scratch: Path) -> tuple[Path, Path | None, str]:
        """See `Composition.plan_file`: the artefact's own."""
        kept = cache_dir("artefacts", self._artefact.key)
        return self._artefact.path, kept / f"{stem}-{self.pairs}.jit", "an exported plan"

    def bank(self, occluders: Tensor) -> Tensor:
        """See `Composition.bank`: row 0 is clean. Raises `InputError` for more or fewer rows than the plan takes."""
        check_rows(self._artefact.folder, self._limits, len(occluders))
        return with_clean_row(occluders)

    def step(self, plan: Plan, pairs: FixedPairs, bank: Tensor | None, impl: str) -> Step:
        """See `Composition.step`."""
        lists = (pairs.images, pairs.image_index, pairs.occluder_index)
        given = dict(zip(INPUTS, lists, strict=True)) | ({} if bank is None else {BANK: bank})
        return lambda: plan(given)
