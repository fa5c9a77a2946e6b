"""How much memory a training will take, to be said before it begins: a system that runs out ends the process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...export.occluded import OccludedClassifier
from ..data.memory import available

_MIB = 1 << 20
# A backward pass holds gradients of a layer and workspace beside what the forward pass has kept for it.
_BESIDE = 1.25


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes beside the network.

    Attributes
    ----------
    each
        For each picture of a pass, on the device.
    pass_size
        Maximum number of pictures in a pass.
    pictures, placed
        For all pictures in memory at a time, on the host, and on the device where that is another.
    """

    each: int
    pass_size: int
    pictures: int
    placed: int

    def described(self, device: torch.device) -> str:
        """Return one line, which says what to do where that much is not free."""
        passes = self.each * self.pass_size
        line = (
            f"memory: about {passes / _MIB:,.0f} MiB for a pass of {self.pass_size} pictures and its gradient, "
            f"{self.pictures / _MIB:,.0f} MiB for pictures in memory"
        )
        on_cpu = device.type == "cpu"
        free = available() - self.pictures if on_cpu else _free_on_gpu(device) - self.placed
        if passes <= free:
            return line
        fitting = int(free / self.each)
        fix = f"use --pass-size {fitting}" if fitting > 0 else "lower --classes-together or --per-class"
        where = "" if on_cpu else " on the GPU"
        return f"{line}; only {max(free, 0.0) / _MIB:,.0f} MiB are free beside these{where}: {fix}"


def _free_on_gpu(device: torch.device) -> float:
    """Return the bytes that a GPU has left, with those that PyTorch keeps there for reuse."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def gradient_bytes(network: OccludedClassifier, size: int, device: torch.device) -> int:
    """Return about how many bytes each picture of a pass takes until its gradient is there.

    They are what autograd keeps of one picture of `size` pixels a side, and a quarter more.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
    first, occluder = torch.arange(1, device=device), torch.zeros(1, size, size, 3, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = network(images, first, first + 1, occluder)  # alive, so that no storage is given to another tensor
    del logits
    return int(_BESIDE * sum(kept.values()))
