"""The random generators of PyTorch, NumPy and Python: left as they were, or drawing the same numbers every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only


@contextmanager
def undisturbed(*devices: torch.device) -> Iterator[None]:
    """Restore the random state of PyTorch (on the CPU and these devices), NumPy and Python afterwards.

    Args:
        devices: devices besides the CPU.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def repeatable(seed: int = 0) -> Iterator[Callable[[], bool]]:
    """Draw the same numbers in the block every time, on any process, and restore the generators afterwards.

    Args:
        seed: other numbers for another seed.

    Yields:
        A function that tells whether NumPy's or Python's generator was drawn from.

    Example:
        >>> def drawn() -> tuple[float, float, float]:
        ...     with repeatable():
        ...         return torch.rand(()).item(), np.random.rand(), random.random()
        >>> drawn() == drawn()
        True
    """
    generators = _default_generators()
    with undisturbed(*(generator.device for generator in generators)):
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = _of_python_and_numpy()
        yield lambda: _of_python_and_numpy() != before


def _of_python_and_numpy() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), name, keys.tobytes(), *rest  # type: ignore[union-attr]


class RewindableIterator(Iterator[Any]):
    """Give what another iterator gives; what is taken between `record` and `stop` is given again after `stop`.

    Args:
        source: the iterator.

    Example:
        >>> numbers = RewindableIterator(iter("abc"))
        >>> numbers.record()
        >>> next(numbers), next(numbers), numbers.stop(), next(numbers)
        ('a', 'b', True, 'a')
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._kept: list[Any] = []  # what was taken in a record and not given again yet
        self._records = 0
        self.position = 0
        """How many of them were given in this record."""

    def record(self) -> None:
        """Keep from now on what is taken; records may be nested."""
        self._records += 1

    def stop(self) -> bool:
        """End the last `record`; return whether anything was kept."""
        self._records -= 1
        self.position = 0
        return bool(self._kept)

    def __next__(self) -> Any:
        if not self._records:
            return self._kept.pop(0) if self._kept else next(self._source)
        # Unseen by a trace, in which only the first run takes from the source.
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            if self.position == len(self._kept):
                self._kept.append(next(self._source))
            self.position += 1
            # The code may write into what it has taken.
            return tree_map_only(Tensor, torch.clone, self._kept[self.position - 1])

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Return the class of the source, which code may ask for."""
        return type(self._source)

    def __len__(self) -> int:
        return len(self._source)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which copying asks for, before there is a source
            raise AttributeError(name)
        return getattr(self._source, name)


_GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator, RewindableIterator)


class NumberedDraws:
    """Seed every draw of PyTorch's by its number: how many numbers those before it drew may depend on widths.

    Args:
        seed: other numbers for another seed.

    Attributes:
        count: how many draws there were.
    """

    def __init__(self, seed: int = 0) -> None:
        self.count = 0
        self._seed = seed
        self._before: dict[int, tuple[torch.Generator, Tensor]] = {}

    def seed(self, generator: torch.Generator | None) -> None:
        """Seed the next draw, from a generator of the code's own or the default ones.

        Args:
            generator: the code's own; `restore` gives it back the state that it has now.
        """
        self.count += 1
        if generator is not None:
            self._before.setdefault(id(generator), (generator, generator.get_state()))
        for drawn_from in _default_generators() if generator is None else [generator]:
            drawn_from.manual_seed((self._seed << 32) + self.count)

    def restore(self) -> None:
        """Give generators of the code's own the state back that they had before the first draw."""
        for generator, state in self._before.values():
            generator.set_state(state)
        self._before.clear()


def restorers(values: Iterable[Any]) -> list[Callable[[], object]]:
    """Return functions that give the generators among some values the states back that they have now.

    Args:
        values: any values, generators of random numbers and rewindable iterators among them.

    Example:
        >>> own = random.Random(1)
        >>> (restore,) = restorers([own, "no generator"])
        >>> first, _ = own.random(), restore()
        >>> own.random() == first
        True
    """
    found: list[Callable[[], object]] = []
    for value in values:
        if not isinstance(value, _GENERATORS):  # as nearly all attributes of a model
            continue
        if isinstance(value, torch.Generator):
            found.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            found.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            found.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, RewindableIterator):
            found.append(partial(setattr, value, "position", value.position))
        elif isinstance(value, np.random.Generator):
            found.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
    return found


def _default_generators() -> list[torch.Generator]:
    """Return PyTorch's own generators; those on CUDA only where CUDA is in use already."""
    on_cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *on_cuda]
