"""Find copies of a network that a module registers tensor by tensor, as buffers or in a `ParameterList`."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Named = tuple[str, Tensor]


def find_tensor_copies(
    module: nn.Module, trained: Set[int], used: Set[str], apart: Collection[str] = ()
) -> dict[str, str]:
    """Return which registered tensors are copies of parameters: name of the tensor -> name of the parameter.

    So averages are kept that no forward runs. Among the tensors that one module registers there has to be one for each
    parameter of a trained part, in the order of its parameters, with the same values, and the training step must not
    use any of them: it would be a teacher.

    Args:
        module: the LightningModule.
        trained: identities of the parameters that an optimizer trains.
        used: names of the tensors that the training step uses.
        apart: paths of networks of which it is decided otherwise whether they follow.

    Example:
        >>> module, average = nn.Module(), nn.Module()
        >>> module.net, module.average = nn.Linear(2, 3), average
        >>> for name, parameter in module.net.named_parameters():
        ...     average.register_buffer(f"mean_{name}", parameter.detach().clone())
        >>> find_tensor_copies(module, {id(parameter) for parameter in module.net.parameters()}, set())
        {'average.mean_weight': 'net.weight', 'average.mean_bias': 'net.bias'}
    """
    parts = [
        [(f"{path}.{name}" if path else name, p) for name, p in part.named_parameters() if id(p) in trained]
        for path, part in module.named_modules()
    ]
    parts = [part for part in parts if any(_is_plain(p) and p.dim() > 1 for _, p in part)]
    found: dict[str, str] = {}
    for path, holder in module.named_modules():
        if _is_layer(holder) or any(f"{path}.".startswith(f"{other}.") for other in apart):
            continue
        direct = [*holder.named_parameters(recurse=False), *holder.named_buffers(recurse=False)]
        prefix = f"{path}." if path else ""
        own = [(prefix + name, tensor) for name, tensor in direct if id(tensor) not in trained and _is_plain(tensor)]
        copies = next(filter(None, (_in_order(own, part) for part in parts if len(part) <= len(own))), {})
        if not used & copies.keys():
            found.update(copies)
    return found


def _is_layer(module: nn.Module) -> bool:
    holds_only = type(module) is nn.Module or isinstance(module, nn.ParameterList | nn.ParameterDict)
    return type(module).__module__.startswith("torch.nn.") and not holds_only


def _in_order(tensors: Sequence[Named], parameters: Sequence[Named]) -> dict[str, str]:
    """Return for each parameter its copy; empty if one has none."""
    copies: dict[str, str] = {}
    rest = iter(tensors)
    for name, parameter in parameters:
        copy = next((own for own, tensor in rest if _same(tensor, parameter)), None)
        if copy is None:
            return {}
        copies[copy] = name
    return copies


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and _is_plain(second) and torch.equal(first.to(second), second)


def _is_plain(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and tensor.layout == torch.strided and not tensor.is_meta and tensor.is_floating_point()
