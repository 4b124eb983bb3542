"""`DistilledStep`: a training step whose loss includes the distance to the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from infoprune.errors import ConfigurationError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from infoprune.callbacks.distillation import Distillation

STEP = "training_step"


@dataclass(frozen=True)
class NetworkCall:
    """One run of the student within a training step."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    activations: dict[str, Any]


class DistilledStep:
    """Wrap a LightningModule's training step, and record each run of its network, until `end`."""

    def __init__(
        self, pl_module: pl.LightningModule, wrapped_network: nn.Module, network: nn.Module, distillation: Distillation
    ) -> None:
        self._module = pl_module
        self._distillation = distillation
        self._calls: list[NetworkCall] | None = None  # None outside of a step
        self._activations: dict[str, Any] = {}
        self._before = vars(pl_module).get(STEP)
        self._step = getattr(pl_module, STEP)
        vars(pl_module)[STEP] = self
        self._handles = [wrapped_network.register_forward_hook(self._see, with_kwargs=True)]
        for name in distillation.hints:
            layer = network.get_submodule(name)
            self._handles.append(layer.register_forward_hook(partial(self._keep, name)))

    def __deepcopy__(self, memo: dict[int, Any]) -> DistilledStep:
        """Return this object, so that a copy of a hooked layer does not copy the whole LightningModule."""
        return self

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._calls is not None:
            self._activations[name] = output

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._calls is not None:
            self._calls.append(NetworkCall(args, kwargs, output, self._activations))
            self._activations = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the training step, and mix its loss with the distance to the teacher."""
        calls: list[NetworkCall] = []
        self._calls = calls
        try:
            result = self._step(*args, **kwargs)
        finally:
            self._calls = None
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor):
            return result  # a step that is skipped; Lightning refuses anything else
        if not calls:
            raise ConfigurationError(
                f"Distillation: the training_step of {type(self._module).__name__} does not call the network that is "
                "pruned, so there is nothing to compare with the teacher: give FilterPruning its module=..., or leave "
                "Distillation out"
            )
        distance = self._distillation.distance(calls)
        self._module.log("distillation/loss", distance.detach(), on_step=True, on_epoch=False, batch_size=1)
        mixed = (1 - self._distillation.weight) * loss + distance
        return {**result, "loss": mixed} if isinstance(result, Mapping) else mixed

    def end(self) -> None:
        """Restore the LightningModule's own training step."""
        for handle in self._handles:
            handle.remove()
        vars(self._module).pop(STEP, None)
        if self._before is not None:  # an attribute of the instance, as of a compiled module
            vars(self._module)[STEP] = self._before
