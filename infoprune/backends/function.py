"""A function of the user's as a backend: it reaches devices that only the user can reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from infoprune.backends.backend import Backend, Run
from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from infoprune.inputs import Inputs


@dataclass(kw_only=False)
class Function(Backend):
    """Asks ``measure(model, example_inputs)`` for the seconds of a forward pass, each time anew.

    Args:
        measure: Returns seconds; a median of some runs where single runs scatter.

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

    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Return a run that calls the function.

        Raises:
            ConfigurationError: in a run: the function returns anything but a number of seconds above 0.
        """

        def run() -> float:
            seconds = self.measure(model, example_inputs)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
                raise ConfigurationError(
                    f"the function that was given as a backend returned {seconds!r}: it has to return the seconds of a "
                    "forward pass, a number above 0"
                )
            return float(seconds)

        return run
