"""Compute numbers during a pass on shapes, only where control flow reads them.

Which boxes a detector keeps, how many tokens a mask leaves: such code reads numbers, of which a pass on shapes has
none. All calls of operators are noted. When one needs numbers, the calls that lead to its arguments are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from infoprune.structure.tracing.overwritten import check_numbers
from infoprune.structure.tracing.rules import tensors_in

BUDGET = 1 << 30
"""So many multiply-accumulates may be computed for one reading. Where it would take more, random numbers stand for what
products with the model's weights give: which boxes a detector keeps says nothing about its channels."""

LARGE = 8.0
"""The mean of random numbers, around which they vary by one."""

MANY_SCORES, HIGH_SCORES = 1 << 20, 64
"""Of more random numbers than these one in so many is large, the others are as large below zero."""

REPEATED = HIGH_SCORES * 4099
"""After so many, scores repeat: to draw ten million takes long. It is a multiple of a prime, as no image is wide."""

MOST = 10_000
"""So many readings there may be: random numbers can keep a loop going that waits for something to converge."""

_PRODUCTS = frozenset({"aten.convolution", "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"})


@dataclass(eq=False)
class Call:
    """One call of an operator on shapes.

    Attributes:
        func: the operator.
        name: its name without overload.
        args: its arguments.
        kwargs: its keyword arguments.
        tensors: all tensors among them.
        outs: the tensors that it returned; one that it wrote to is the argument itself.
        done: whether it was run on numbers.
        versions: how often each of the tensors with numbers had been written to when it was called.
    """

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: Sequence[Tensor]
    outs: Sequence[Tensor] = ()
    done: bool = False
    versions: Sequence[int] = ()

    @cached_property
    def reads(self) -> frozenset[int]:
        """Return the memory of its arguments."""
        return frozenset(_memory(tensor) for tensor in self.tensors if tensor.is_meta)

    @cached_property
    def writes(self) -> frozenset[int]:
        """Return the memory of its results."""
        return frozenset(_memory(tensor) for tensor in self.outs if tensor.is_meta)

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of a product."""
        if self.name not in _PRODUCTS:
            return 0
        if self.name == "aten.convolution":
            return self.outs[0].numel() * self.args[1][0].numel()
        return self.outs[0].numel() * int(self.tensors[-1].shape[-2])


class Values:
    """Record the calls of a pass on shapes, and compute their numbers on demand.

    Args:
        weights: the model's tensors on shapes, each with the tensor that it stands for.
        inputs: the same for the inputs.

    Attributes:
        made_up: whether random numbers stood for some.
    """

    def __init__(self, weights: Iterable[tuple[Tensor, Tensor]], inputs: Iterable[tuple[Tensor, Tensor]]) -> None:
        pairs = [(shape, real) for shape, real in weights if shape.is_meta]
        self.made_up = False
        self._weights = frozenset(_memory(shape) for shape, _ in pairs)
        self._sources = {id(shape): real for shape, real in [*pairs, *inputs]}
        self._computed: dict[int, Tensor] = {}
        self._calls: list[Call] = []  # holds all tensors, so that no other tensor gets the id or memory of one
        self._indexed = 0  # so many of them stand in the next two
        self._writers: dict[int, list[int]] = {}  # memory -> places of the calls that write to it
        self._readers: dict[int, list[int]] = {}
        self._readings = 0

    def note(self, call: Call) -> None:
        """Record a call, which may have to be computed later.

        Args:
            call: the call, with its results as shapes.
        """
        call.versions = _versions(call.tensors)
        self._calls.append(call)

    def read(self, call: Call) -> Any:
        """Compute a call whose numbers are needed, and record it.

        Args:
            call: the call, not yet recorded.

        Returns:
            What the operator returns. Tensors are on shapes alone again, unless it takes them off meta.
        """
        self._readings += 1
        if self._readings > MOST:
            raise RuntimeError(f"the control flow reads numbers more than {MOST} times")
        self._compute([tensor for tensor in call.tensors if tensor.is_meta])
        result = self._result(call)
        if isinstance(result, Tensor | tuple | list) and call.name != "aten._to_copy":
            numbers = tensors_in((result,))
            result = tree_map_only(Tensor, _shape_of, result)
            call.outs, call.done = tensors_in((result,)), True
            self._computed.update((id(out), number) for out, number in zip(call.outs, numbers, strict=True))
            self.note(call)
        return result

    def numbers_of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the numbers of tensors of the pass.

        Args:
            tensors: tensors on shapes.

        Raises:
            RuntimeError: they are not known any more.
        """
        self._compute(tensors)
        return [self._number(tensor) for tensor in tensors]

    def _compute(self, wanted: Sequence[Tensor]) -> None:
        """Compute the calls on which some tensors depend."""
        missing = frozenset(_memory(tensor) for tensor in wanted if id(tensor) not in self._computed)
        places = self._behind(missing) if missing else []
        if sum(self._calls[place].macs for place in places) > BUDGET:
            self.made_up = True
            places = self._behind(missing)
        for place in places:
            call = self._calls[place]
            if self._is_made_up(call):
                numbers = [_random(out, seed=place) for out in call.outs]
            else:
                if call.versions != _versions(call.tensors):
                    raise RuntimeError(f"the code has overwritten numbers that {call.name} used, which are read now")
                numbers = tensors_in((self._result(call),))
            self._computed.update((id(out), number) for out, number in zip(call.outs, numbers, strict=True))
            call.done = True

    def _behind(self, missing: Iterable[int]) -> list[int]:
        """Return the places of the calls that write some memory, in order, without those that were run."""
        self._index()
        found: set[int] = set()
        waiting = self._waiting(self._writers, missing)
        while waiting:
            place = waiting.pop()
            call = self._calls[place]
            if place in found or call.done:
                continue
            found.add(place)
            if call.name.endswith("_"):  # whatever read the memory before has to be run before
                waiting += [at for at in self._waiting(self._readers, call.writes) if at < place]
            if not self._is_made_up(call):
                waiting += [at for at in self._waiting(self._writers, call.reads) if at < place]
        return sorted(found)

    def _waiting(self, places: dict[int, list[int]], memories: Iterable[int]) -> list[int]:
        """Return the places of calls on some memory that were not run, and forget those that were."""
        found: list[int] = []
        for memory in memories:
            places[memory] = [place for place in places.get(memory, ()) if not self._calls[place].done]
            found += places[memory]
        return found

    def _index(self) -> None:
        for place in range(self._indexed, len(self._calls)):
            for memory in self._calls[place].writes:
                self._writers.setdefault(memory, []).append(place)
            for memory in self._calls[place].reads:
                self._readers.setdefault(memory, []).append(place)
        self._indexed = len(self._calls)

    def _is_made_up(self, call: Call) -> bool:
        """Return whether random numbers stand for what a product with weights gives."""
        return self.made_up and call.name in _PRODUCTS and not call.reads.isdisjoint(self._weights)

    def _result(self, call: Call) -> Any:
        kwargs = {key: self._number(value) for key, value in call.kwargs.items()}
        return call.func(*map(self._number, call.args), **kwargs)

    def _number(self, value: Any) -> Any:
        """Return an argument with real numbers in place of tensors without data, which stand in lists at most."""
        if isinstance(value, (list, tuple)):
            return [self._number(item) for item in value]
        if isinstance(value, torch.device) and value.type == "meta":
            return torch.device("cpu")
        if not isinstance(value, Tensor) or not value.is_meta:
            if isinstance(value, Tensor):
                check_numbers(value)
            return value
        if id(value) not in self._computed:
            self._computed[id(value)] = self._sources[id(value)].detach().clone()
        return self._computed[id(value)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors if not tensor.is_meta and not tensor.is_inference()]


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _random(out: Tensor, seed: int) -> Tensor:
    """Return large random numbers: boxes of this size cover the whole image, so that few are left after filtering.

    Of so many that they can only be scores of classes at many places, most are low, as a trained detector's are.
    """
    count, generator = out.numel(), torch.Generator().manual_seed(seed)
    numbers = torch.randn(REPEATED if count > MANY_SCORES else count, generator=generator).add_(LARGE)
    if count > MANY_SCORES:
        high = numbers[::HIGH_SCORES].clone()
        numbers -= 2 * LARGE
        numbers[::HIGH_SCORES] = high
        numbers = numbers.repeat(-(-count // REPEATED))[:count]
    return torch.empty_strided(out.shape, out.stride(), dtype=out.dtype).copy_(numbers.view(out.shape))
