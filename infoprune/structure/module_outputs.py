"""`ModuleOutputs`: summaries of what each module of a model puts out, to find where two runs part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves


class ModuleOutputs:
    """The output of each module call of a run, in order, without the channels that a plan removes.

    To save memory, each tensor is summarised by its sum of absolute values and its product with a ramp.

    Attributes:
        summaries: for each call the module's name and a summary of each of its output tensors.
    """

    def __init__(self) -> None:
        self.summaries: list[tuple[str, list[Tensor]]] = []

    @contextmanager
    def noted(self, names: Mapping[int, str], kept: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Record the outputs of modules that run within the block.

        Args:
            names: ``id`` of a module -> the name to record it by; other modules are passed over.
            kept: returns of an output the part that a plan leaves.
        """

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            if id(module) in names:
                tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
                with _disable_current_modes():
                    self.summaries.append((names[id(module)], [_summary(kept(tensor)) for tensor in tensors]))

        handle = register_module_forward_hook(leave)
        try:
            yield
        finally:
            handle.remove()


def _summary(tensor: Tensor) -> Tensor:
    values = tensor.detach().flatten()
    values = values.to(torch.complex128 if values.is_complex() else torch.float64)
    ramp = torch.linspace(1, 2, values.numel(), dtype=torch.float64, device=values.device)
    return torch.stack([values.abs().sum(), (values * ramp).sum()])
