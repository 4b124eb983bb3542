"""`undisturbed`: run code of a LightningModule, and leave no trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from infoprune.callbacks.engine.outside_state import OutsideState
from infoprune.structure.module_state import attributes_restored
from infoprune.structure.tensors import owned_tensors, swapped


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Let a block run on clones of a module's tensors, without compiled code, and restore all that it has changed.

    Restored are parameters, buffers, attributes, and the objects and networks that attributes lead to.

    Args:
        module: the module whose code runs.

    Yields:
        Name -> clone of the parameter or buffer.
    """
    owned = owned_tensors(module)
    with ExitStack() as stack:
        stack.enter_context(OutsideState(module).restored())
        stack.enter_context(attributes_restored(module.modules()))
        clones = {name: _clone(entry.tensor) for name, entry in owned.items()}
        stack.enter_context(swapped(owned, clones))
        for part in module.modules():
            for name, value in list(vars(part).items()):
                if isinstance(value, Tensor):  # the state of a metric, say, which is updated in place
                    vars(part)[name] = value.detach().clone()
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield clones


def _clone(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
