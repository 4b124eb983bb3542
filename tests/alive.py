"""What a process holds: how many tensors, modules, hooks and optimizers, and how much memory."""

from __future__ import annotations

import gc
from collections import Counter

import torch
from torch import nn

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def alive() -> Counter[str]:
    """How many tensors, modules, hooks (of modules and tensors) and optimizers there are."""
    gc.collect()
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.Tensor):
            found["tensors"] += 1
            found["hooks"] += len(thing._backward_hooks or ())
        elif issubclass(kind, nn.Module):
            found["modules"] += 1
            found["hooks"] += sum(len(thing.__dict__.get(name) or ()) for name in HOOKS)
        elif issubclass(kind, torch.optim.Optimizer):
            found["optimizers"] += 1
    return found


def tensor_bytes() -> int:
    """The memory behind all tensors, each storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def resident() -> float:
    """Resident memory in MiB, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096 / 2**20
    except OSError:
        return 0.0
