"""Backend for ``torch.compile``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from infoprune.backends.backend import BACKENDS, Backend, Run
from infoprune.backends.eager import timed_calls
from infoprune.errors import ExportError
from infoprune.snapshot import snapshot

if TYPE_CHECKING:
    from infoprune.inputs import Inputs

VERSIONS = 1000


@BACKENDS.register("compile")
@dataclass(kw_only=True)
class Compile(Backend):
    """Run the model through ``torch.compile``, compiled for the shapes of the inputs. Loading takes up to a minute."""

    warmup: ClassVar[int] = 5

    def load(self, model: nn.Module, example_inputs: Inputs) -> Run:
        """Compile a copy of the model, and run it once.

        Raises:
            ExportError: the compiler fails.
        """
        twin = snapshot(model)
        run = timed_calls(torch.compile(twin, dynamic=False), twin, example_inputs)
        try:
            # Every width is another version of the same code; PyTorch would run all but the first eight in eager mode.
            with torch._dynamo.config.patch(recompile_limit=VERSIONS):
                run()
        except Exception as error:  # whatever the compiler raises is about the model, or about a missing C++ compiler
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(f"torch.compile cannot take {type(model).__name__}: {reason}") from error
        return run
