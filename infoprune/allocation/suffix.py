"""Run a model repeatedly from the first use of some weights on.

The results that a model computes before it uses a weight do not depend on that weight. So the run is recorded up to
this point: the model's own code runs each time under a torch function mode, which returns recorded results for all
earlier calls. The recording up to one point is extended to the next, so that all points of a model cost a single pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from infoprune.calibration import run
from infoprune.criteria.activations.suffix_replay import ReplayError, _Call, _remember, _Result
from infoprune.criteria.activations.tap import is_query


@dataclass(frozen=True)
class Prefix:
    """The recorded calls of a run up to some point, with the results that are used after it.

    An empty one stands for the model's entrance.
    """

    calls: list[_Call] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)


class _Reached(BaseException):
    """End a run at the requested call. A BaseException, so that no model's code handles it."""


class _Resumed(TorchFunctionMode):
    """Replay the recorded calls of a prefix, and compute from there on.

    Args:
        prefix: What is remembered.
        until: Ids of the weights before whose first use the run ends with :class:`_Reached`; None runs to the end.
    """

    def __init__(self, prefix: Prefix, until: Collection[int] | None = None) -> None:
        super().__init__()
        self._prefix = prefix
        self._until = until
        self._position = 0
        self._calls: list[_Call] = []
        self._made: dict[int, Tensor] = {}
        self.reached: Prefix | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._position < len(self._prefix.calls):
            return self._answer(func)
        kwargs = kwargs or {}
        met = self._until and any(id(leaf) in self._until for leaf in tree_leaves((args, kwargs)))
        if met and not is_query(func):
            self._end()
        output = func(*args, **kwargs)
        if met and isinstance(output, Tensor):  # a view, such as weight.T
            self._end()
        self._note(func, output)
        return output

    def _note(self, func: Any, output: Any) -> None:
        """Record a call for the memory of the place that the run ends at."""
        if self._until is not None:
            leaves, spec = tree_flatten(output)
            self._calls.append(_Call(func, [_remember(leaf) for leaf in leaves], spec))

    def _end(self) -> NoReturn:
        self.reached = self._remembered()
        raise _Reached

    def _answer(self, func: Any) -> Any:
        """Return what a recorded call returned."""
        call = self._prefix.calls[self._position]
        self._position += 1
        if call.func != func:
            raise ReplayError(f"{func} was called where the recording has {call.func}")
        output = tree_unflatten([self._leaf(leaf) for leaf in call.leaves], call.spec)
        if call.is_forgotten:
            self._calls.append(call)
        else:
            self._note(func, output)
        return output

    def _leaf(self, leaf: Any) -> Any:
        if not isinstance(leaf, _Result):
            return leaf
        if leaf.kept is None:
            return leaf.stand_in
        if leaf.kept not in self._made:  # a copy, since what follows may write into it
            self._made[leaf.kept] = self._prefix.kept[leaf.kept].clone()
        return self._made[leaf.kept]

    def _remembered(self) -> Prefix:
        kept: dict[int, Tensor] = {}
        self._made.clear()  # so that only what the model still holds is in use
        for call in self._calls:
            for place, leaf in enumerate(call.leaves):
                tensor = leaf.reference() if isinstance(leaf, _Result) else None
                if tensor is not None and not _is_stand_in(tensor):
                    kept.setdefault(id(tensor), tensor.clone())
                    call.leaves[place] = _Result(leaf.reference, leaf.shape, leaf.dtype, leaf.device, id(tensor))
        return Prefix(list(self._calls), kept)  # contexts that the end of this run leaves call more functions


def _is_stand_in(tensor: Tensor) -> bool:
    """Expand a number to the shape of a result that no later operator reads."""
    return tensor.numel() > 1 and not any(tensor.stride())


def advance(model: nn.Module, inputs: Any, prefix: Prefix, weights: Iterable[Tensor]) -> Prefix | None:
    """Record a run up to its first use of any of some weights; None if it uses none of them.

    Args:
        model: In eval mode, without gradients.
        inputs: The batch that ``prefix`` was made with.
        prefix: From where on to compute.
        weights: Parameters or buffers; none of them may be used within ``prefix``.
    """
    mode = _Resumed(prefix, {id(weight) for weight in weights})
    try:
        with mode:
            run(model, inputs)
    except _Reached:
        return mode.reached
    return None


def resume(model: nn.Module, inputs: Any, prefix: Prefix) -> Any:
    """Return the model's outputs, computed from a place on.

    Args:
        model: The recorded model.
        inputs: The inputs of the recorded run.
        prefix: The recorded calls.

    Raises:
        ReplayError: the run differs from the recorded one.
    """
    with _Resumed(prefix):
        return run(model, inputs)


class _FirstUses(TorchFunctionMode):
    def __init__(self, wanted: Collection[int]) -> None:
        super().__init__()
        self._wanted = set(wanted)
        self.order: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not is_query(func) or isinstance(output, Tensor):
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self._wanted:
                    self._wanted.discard(id(leaf))
                    self.order.append(id(leaf))
        return output


def first_uses(model: nn.Module, inputs: Any, weights: Iterable[Tensor]) -> tuple[Any, list[int]]:
    """Return the outputs of a run, and the ids of the weights that it used in the order of their first use.

    Args:
        model: Any module.
        inputs: Its inputs.
        weights: Parameters to look for.
    """
    mode = _FirstUses({id(weight) for weight in weights})
    with mode:
        return run(model, inputs), mode.order
