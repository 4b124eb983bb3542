"""A user's function as a backend, for devices that only the user can reach."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from infoprune.backends.backend import Backend, Run
from infoprune.errors import ConfigurationError
from infoprune.snapshot import snapshot

if TYPE_CHECKING:
    from torch import nn

    from infoprune.inputs import Inputs


@dataclass(kw_only=False)
class Function(Backend):
    """Call ``measure(model, example_inputs)`` for the seconds of each forward pass.

    Args:
        measure: Returns seconds; a median of some runs where single runs scatter. It gets a copy of the model in eval
            mode, with which it may do anything.

    Example:
        >>> import torch
        >>> run = Function(lambda model, inputs: 0.25).load(torch.nn.Linear(1, 1), torch.zeros(1, 1))
        >>> run()
        0.25
    """

    name: ClassVar[str] = "function"
    repeats: ClassVar[int] = 2  # a call is a measurement already
    warmup: ClassVar[int] = 0

    measure: Callable[[nn.Module, Inputs], float]

    def check(self) -> None:
        """Raise a ConfigurationError if the function cannot be called with a model and its inputs."""
        try:
            signature = inspect.signature(self.measure)
        except (TypeError, ValueError):  # some functions that are not written in Python have no signature
            return
        try:
            signature.bind(None, None)
        except TypeError as error:
            raise ConfigurationError(
                f"the function that was given as a backend takes {signature}: it has to take (model, example_inputs)"
            ) from error

    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Return a run that calls the function.

        Raises:
            ConfigurationError: in a run: the function fails, or returns anything but a number of seconds above 0.
        """
        twin = snapshot(model)

        def run() -> float:
            seconds: Any  # whatever the function makes of it
            try:
                seconds = self.measure(twin, example_inputs)
            except Exception as error:  # of any kind: it is the user's code
                raise ConfigurationError(
                    f"the function that was given as a backend failed ({type(error).__name__}: {error})"
                ) from error
            if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 < float(seconds) < math.inf:
                raise ConfigurationError(
                    f"the function that was given as a backend returned {seconds!r}: it has to return the seconds of a "
                    "forward pass, a number above 0"
                )
            return float(seconds)

        return run
