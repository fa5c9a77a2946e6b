"""Float32 islands: modules of a half-precision network that lack an operation on a device run in float32 there.

`find_islands` changes as little as will do. A module that fails alone becomes an island: float32 weights, inputs cast
up, outputs cast back. Where a module's modules run and its own operations fail, these alone become one: what they call
still runs in half precision. Only where that fails, too, the module is an island as a whole, with all it holds.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .errors import in_short, lacks_memory

_NAMED = 4  # modules of a kind that a message lists


def is_the_machines(error: BaseException) -> bool:
    """Return whether an error is a lack of memory or a failing GPU pass: it is not the network's then."""
    kinds = (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)
    return isinstance(error, kinds) or lacks_memory(error)


@dataclass(frozen=True)
class Island:
    """A module that runs in float32, or only its own operations, without the modules that it calls.

    Attributes
    ----------
    name
        As `named_modules` has it.
    kind
        Name of its class.
    whole
        Whether all that it holds runs in float32.
    reason
        What it raises in half precision.
    """

    name: str
    kind: str
    whole: bool
    reason: str


def described(islands: Sequence[Island], precision: str, device: torch.device) -> str:
    """Return one line that names the islands and why they are there; empty where there are none."""
    alike: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for island in islands:
        alike[island.kind, island.reason, island.whole].append(island.name)
    parts = [_listed(kind, reason, whole, names) for (kind, reason, whole), names in alike.items()]
    return f"in float32, as {precision} fails on {device.type}: {', '.join(parts)}" if parts else ""


def _listed(kind: str, reason: str, whole: bool, names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = " ".join(filter(None, [kind, f"{', '.join(names[:_NAMED])}{more}"]))
    return f"{'' if whole else 'the own operations of '}{listed} ({reason})"


def find_islands(network: nn.Module, full: nn.Module, picture: Tensor, *, gradient: bool) -> list[Island]:
    """Make islands of the smallest modules that fail on a picture, so that the network runs; return them.

    Parameters
    ----------
    network
        In half precision, on the device. It is changed only if islands help.
    full
        The same in float32, on any device.
    picture
        [1, 3, S, S] in the network's dtype, on its device.
    gradient
        Whether the gradient with respect to the picture must run, too.

    Returns
    -------
    list of Island
        Empty where islands do not help: nothing would be left in half precision, or the network fails in float32.
    """
    search = _Search(network, copy.deepcopy(full).to(picture.device), picture.dtype, gradient)
    try:
        search.record(picture.float())
    except (Exception, SystemExit) as error:  # the network's own code raises any kind
        if is_the_machines(error):
            raise
        return []
    return list(search.islands.values()) if search.mend("") else []


@dataclass(frozen=True)
class _Call:
    """What a module was called with, in float32."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def tensors(self) -> Iterator[Tensor]:
        return _tensors((self.arguments, self.keywords))


class _Search:
    """Tries modules alone in half precision, on what they are called with in float32; from the whole to its parts."""

    def __init__(self, network: nn.Module, full: nn.Module, half: torch.dtype, gradient: bool) -> None:
        self.islands: dict[str, Island] = {}
        self._network, self._full = dict(network.named_modules()), dict(full.named_modules())
        self._names = {module: name for name, module in self._full.items()}  # of one that is held twice, the first
        self._half, self._gradient = half, gradient
        self._calls: dict[str, list[_Call]] = defaultdict(list)
        self._overwriting: set[str] = set()
        self._hooks: dict[str, list[Any]] = defaultdict(list)

    @torch.no_grad()
    def record(self, picture: Tensor) -> None:
        """Run the float32 network, and note what each module is called with and whether it writes into that."""
        handles, versions = [], list[list[int]]()

        def before(name: str, _module: nn.Module, arguments: Any, keywords: Any) -> None:
            call = _Call(arguments, keywords)
            self._calls[name].append(call)
            versions.append([tensor._version for tensor in call.tensors()])

        def after(name: str, _module: nn.Module, arguments: Any, keywords: Any, _output: object) -> None:
            if versions.pop() != [tensor._version for tensor in _Call(arguments, keywords).tensors()]:
                self._overwriting.add(name)

        for name, module in self._full.items():
            handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, name), with_kwargs=True))
        try:
            self._full[""](picture)
        finally:
            for handle in handles:
                handle.remove()

    def mend(self, name: str) -> bool:
        """Make islands within a module, or an island of it, until it runs; return whether it does."""
        reason = self._failure(name)
        if reason is None:
            return True
        called = self._called(self._full[name])
        for child in called:
            self.mend(child)
        if called:
            reason = self._failure(name)
            if reason is None:
                return True
        # Of a copy that was cast up a caller would not see what is written into it.
        makers = () if name in self._overwriting else (self._own_operations, self._whole)
        for make in makers:
            if make(name, called) and self._failure(name) is None:
                kind = type(self._full[name]).__name__
                self.islands[name] = Island(name, kind, make == self._whole, reason)
                return True
        self._undo(name)
        return False

    def _called(self, module: nn.Module) -> list[str]:
        """Return the nearest modules within one that were called: a ModuleList itself never is."""
        found = list[str]()
        for child in module.children():
            name = self._names[child]
            found += [name] if name in self._calls else self._called(child)
        return found

    def _failure(self, name: str) -> str | None:
        """Return what a module raises in half precision, alone, on any of its calls; None if it runs."""
        for call in self._calls[name]:
            try:
                self._run(self._network[name], call)
            except (Exception, SystemExit) as error:  # the network's own code raises any kind
                if is_the_machines(error):
                    raise
                return in_short(error)
        return None

    def _run(self, module: nn.Module, call: _Call) -> None:
        leaves = list[Tensor]()

        def given(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().to(self._half if tensor.dtype == torch.float32 else tensor.dtype)
            if not (self._gradient and tensor.is_floating_point()):
                return tensor.clone()
            leaves.append(tensor.requires_grad_())
            return tensor.clone()  # a module may write into what it is given, but not into a leaf

        arguments, keywords = _mapped((call.arguments, dict(call.keywords)), given)
        with torch.set_grad_enabled(self._gradient):
            output = module(*arguments, **keywords)
            results = [tensor.float().sum() for tensor in _tensors(output) if tensor.requires_grad]
            if leaves and results:
                torch.autograd.grad(torch.stack(results).sum(), leaves, allow_unused=True)

    def _own_operations(self, name: str, called: Sequence[str]) -> bool:
        """Run a module's own code in float32; what it calls with weights stays as it is, the rest has no precision."""
        inner = [child for child in called if child not in self.islands]
        halves = [child for child in inner if any(t.is_floating_point() for t in _state(self._full[child]))]
        if not halves or not self._overwriting.isdisjoint(halves):
            return False
        self._convert(name, torch.float32, recurse=False)
        for child in called:
            if child in halves:
                self._hook(child, takes=self._half)
            if child in halves or child in self.islands:
                self._hook(child, gives=torch.float32)
        self._hook(name, takes=torch.float32, gives=self._half)
        return True

    def _whole(self, name: str, _called: Sequence[str]) -> bool:
        """Run all of a module in float32; never all of the network, which would be no half precision at all."""
        if not name:
            return False
        self._undo(name)
        self._convert(name, torch.float32)
        self._hook(name, takes=torch.float32, gives=self._half)
        return True

    def _undo(self, name: str) -> None:
        """Make a module, and all within, as it was."""
        for inside in [path for path in self._network if not name or f"{path}.".startswith(f"{name}.")]:
            for handle in self._hooks.pop(inside, ()):
                handle.remove()
            self.islands.pop(inside, None)
        self._convert(name, self._half)

    def _convert(self, name: str, dtype: torch.dtype, *, recurse: bool = True) -> None:
        """Give a module its own weights anew, from the float32 ones."""
        pairs = zip(_state(self._network[name], recurse), _state(self._full[name], recurse), strict=True)
        for ours, full in pairs:
            ours.data = full.data.to(dtype) if full.is_floating_point() else full.data

    def _hook(self, name: str, *, takes: torch.dtype | None = None, gives: torch.dtype | None = None) -> None:
        module, kinds = self._network[name], (torch.float32, self._half)
        if takes is not None:
            take = partial(_take, kinds, takes)
            self._hooks[name].append(module.register_forward_pre_hook(take, with_kwargs=True))
        if gives is not None:
            self._hooks[name].append(module.register_forward_hook(partial(_give, kinds, gives)))


# ---- what stays in the network


def _take(
    kinds: Sequence[torch.dtype], dtype: torch.dtype, _module: nn.Module, arguments: Any, keywords: Any
) -> tuple[Any, Any]:
    """Cast what a module is given, where it is of these kinds."""
    return _mapped((arguments, keywords), partial(_as, kinds, dtype))


def _give(
    kinds: Sequence[torch.dtype], dtype: torch.dtype, _module: nn.Module, _arguments: object, output: Any
) -> object:
    """Cast what a module returns, where it is of these kinds."""
    return _mapped(output, partial(_as, kinds, dtype))


def _as(kinds: Sequence[torch.dtype], dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in kinds else tensor


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with a function applied to the tensors in it, within tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)((key, _mapped(part, function)) for key, part in value.items())
    if isinstance(value, tuple | list):
        parts: Any = [_mapped(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, in the order of `_mapped`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _state(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    """Yield parameters and buffers."""
    return chain(module.parameters(recurse), module.buffers(recurse))
