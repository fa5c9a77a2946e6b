"""Rewriting a frozen network into a faster one that returns the same logits.

A rewrite finds modules to replace, for networks that `torch.fx` cannot trace, too: it may watch one forward pass.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .fold import folded_batchnorms
from .response_norm import convolved_response_norms

Rewrite = Callable[[nn.Module, Tensor], dict[str, nn.Module]]
"""Takes a network in evaluation mode and an input that it accepts; returns new modules by the names of those that they
replace, and leaves the network as it is."""

REWRITES: dict[str, Rewrite] = {
    "BatchNorm": folded_batchnorms,
    "LocalResponseNorm": convolved_response_norms,
}

# Relative to the largest logit; rewriting reorders float32 rounding and nothing else.
_TOLERANCE = 1e-3


@torch.no_grad()
def rewritten(network: nn.Module, example: Tensor, logits: Tensor, name: str) -> nn.Module:
    """Return `network` with the modules replaced that the rewrites find.

    Parameters
    ----------
    network
        A network in evaluation mode, which the caller does not use afterwards: it becomes part of the result.
    example
        An input that the network accepts.
    logits
        What the network returns for it.
    name
        The network's name, for the warning.

    Returns
    -------
    nn.Module
        The network, in evaluation mode and channels-last. A rewrite that would change the logits (something else reads
        what a module returned, too) is left out, with a warning.
    """
    for kind, rewrite in REWRITES.items():
        replaced = rewrite(network, example)
        if not replaced:
            continue
        # Replaced in copying: under every name of a module, and without a copy of what goes.
        changed = copy.deepcopy(network, {id(network.get_submodule(old)): new for old, new in replaced.items()})
        if float((logits - changed(example)).abs().max()) <= _TOLERANCE * float(logits.abs().max()):
            network = changed
        else:
            warnings.warn(f"{name}: {kind} left as it is, replacing it would change the output", stacklevel=2)
    return network.eval().to(memory_format=torch.channels_last)  # new modules start in training mode
