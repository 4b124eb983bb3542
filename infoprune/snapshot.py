"""Copy a network to run beside the original."""

from __future__ import annotations

import copy
from collections import OrderedDict

from torch import nn

from infoprune.structure.surgery.history import KEY as HISTORY
from infoprune.structure.tensors import computed_tensors

INSIDE = ("_modules", "_parameters", "_buffers")


def snapshot(network: nn.Module) -> nn.Module:
    """Copy a network in eval mode, without gradients or hooks.

    Only what is inside is copied. A LightningModule's own object holds metrics, settings and a Trainer, which often
    cannot be copied; a copy of it goes on pointing at them.

    Args:
        network: any module; it is not changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> teacher = snapshot(net)
        >>> teacher.training, any(p.requires_grad for p in teacher.parameters()), teacher[0] is net[0]
        (False, False, False)
    """
    twin: nn.Module = type(network).__new__(type(network))
    vars(twin).update(vars(network))
    copied = {name: vars(network)[name] for name in (*INSIDE, HISTORY) if name in vars(network)}
    # The memo lets children that point back at the network point at the copy.
    vars(twin).update(copy.deepcopy(copied, {id(network): twin, **computed_tensors(network)}))
    for name in [name for name in vars(twin) if name.endswith("_hooks") and isinstance(vars(twin)[name], OrderedDict)]:
        vars(twin)[name] = OrderedDict()
    vars(twin).pop("_compiled_call_impl", None)  # of net.compile(): it would go on calling the network
    if vars(twin).get("_compiler_ctx") is not None:  # of a compiled LightningModule, likewise
        vars(twin).pop("forward")
    return twin.eval().requires_grad_(False)
