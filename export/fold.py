"""Folding BatchNorm into the convolution before it, for networks that `torch.fx` cannot trace.

    w' = w · γ / √(σ² + ε),   b' = (b − μ) · γ / √(σ² + ε) + β

One forward pass is observed to see which convolution feeds which BatchNorm, so that networks of torchvision, timm and
users all work.
"""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded_batchnorms(network: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Return what replaces each BatchNorm that follows a convolution, and that convolution; see `Rewrite`.

    What else reads the convolution's result is not seen.
    """
    replaced: dict[str, nn.Module] = {}
    for bn_name, conv_name in _conv_before_bn(network, example).items():
        conv, bn = network.get_submodule(conv_name), network.get_submodule(bn_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        replaced[conv_name], replaced[bn_name] = fuse_conv_bn_eval(conv, bn), _what_follows(bn)
    return replaced


def _what_follows(bn: nn.BatchNorm2d) -> nn.Module:
    """Return what stays of a folded BatchNorm: the dropout and activation that timm's BatchNormAct2d holds."""
    parts = (getattr(bn, part, None) for part in ("drop", "act"))
    kept = [part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept) if kept else nn.Identity()


def _conv_before_bn(network: nn.Module, example: Tensor) -> dict[str, str]:
    """Return {BatchNorm's name: its convolution's name} for pairs in which each is called exactly once."""
    calls: Counter[str] = Counter()
    produced: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id is reused
    found: dict[str, str] = {}
    handles = []

    def watch_conv(name: str, conv: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] += 1
            produced[id(output)] = (name, output)

        handles.append(conv.register_forward_hook(hook))

    def watch_bn(name: str, bn: nn.Module) -> None:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            if id(inputs[0]) in produced:
                found[name] = produced[id(inputs[0])][0]

        handles.append(bn.register_forward_pre_hook(hook))

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            watch_conv(name, module)
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            watch_bn(name, module)
    network(example)
    for handle in handles:
        handle.remove()
    return {bn: conv for bn, conv in found.items() if calls[bn] == calls[conv] == 1}
