"""What a shrunk model must compute, worked out without any of the structure engine's labels."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infoprune import PruningPlan


class KeptLayerNorm(nn.Module):
    """Layer norm that looks at the channels that stay and leaves zero at the others."""

    def __init__(self, norm: nn.LayerNorm, stay: Tensor) -> None:
        super().__init__()
        self.norm, self.stay = norm, stay

    def forward(self, x: Tensor) -> Tensor:
        own = self.norm
        weight = None if own.weight is None else own.weight[self.stay]
        bias = None if own.bias is None else own.bias[self.stay]
        narrow = F.layer_norm(x[..., self.stay], (int(self.stay.sum()),), weight, bias, own.eps)
        full = torch.zeros_like(x)
        full[..., self.stay] = narrow
        return full


class KeptGroupNorm(nn.Module):
    """Group norm that looks at the channels that stay and leaves zero at the others."""

    def __init__(self, norm: nn.GroupNorm, stay: Tensor) -> None:
        super().__init__()
        self.norm, self.stay = norm, stay

    def forward(self, x: Tensor) -> Tensor:
        own = self.norm
        groups = int(self.stay.sum()) if own.num_groups == own.num_channels else own.num_groups
        full = torch.zeros_like(x)
        full[:, self.stay] = F.group_norm(x[:, self.stay], groups, own.weight[self.stay], own.bias[self.stay], own.eps)
        return full


class OverKept(nn.Module):
    """A module of the tests that computes with the channels that stay alone; the others are zero behind it.

    It says so with ``over_kept``; the first dimension of its tensors is what it makes, the second what it reads.
    """

    def __init__(self, module: nn.Module, name: str, plan: PruningPlan) -> None:
        super().__init__()
        self.narrow = copy.deepcopy(module)
        weight = module.get_parameter(module.over_kept)  # type: ignore[arg-type]
        removed = plan.removed.get(f"{name}.{module.over_kept}", {})
        stay = [[i for i in range(n) if i not in removed.get(dim, ())] for dim, n in enumerate(weight.shape)]
        self.makes, self.reads, self.width = stay[0], stay[1] if weight.dim() > 1 else stay[0], weight.shape[0]
        for own, tensor in [*self.narrow.named_parameters(), *self.narrow.named_buffers()]:
            for dim, indices in plan.removed.get(f"{name}.{own}", {}).items():
                kept = torch.tensor([i for i in range(tensor.shape[dim]) if i not in indices])
                tensor.data = tensor.data.index_select(dim, kept)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(x[:, self.reads])
        full = y.new_zeros(y.shape[0], self.width, *y.shape[2:])
        full[:, self.makes] = y
        return full


def masked(original: nn.Module, plan: PruningPlan) -> nn.Module:
    """A float64 copy of the original with zeros where the plan removes something."""
    original = copy.deepcopy(original).double().eval()
    model = copy.deepcopy(original)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, dims in plan.removed.items():
        for dim, indices in dims.items():
            tensors[name].data.index_fill_(dim, torch.tensor(indices), 0)
    for name, module in list(model.named_modules()):
        if hasattr(module, "over_kept"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, OverKept(original.get_submodule(name), name, plan))
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and f"{name}.weight" in plan.removed:
            stay = torch.ones(len(module.weight), dtype=torch.bool)
            stay[list(plan.removed[f"{name}.weight"][0])] = False
            kept = KeptLayerNorm if isinstance(module, nn.LayerNorm) else KeptGroupNorm
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, kept(module, stay))  # type: ignore[arg-type]
    return model


def relative_error(original: nn.Module, shrunk: nn.Module, plan: PruningPlan, x: Tensor) -> float:
    """Largest difference between the masked original and the shrunk model, relative to the largest output."""
    with torch.no_grad():
        expected = masked(original, plan)(x.double())
        actual = copy.deepcopy(shrunk).double().eval()(x.double())
    return float((expected - actual).abs().max() / expected.abs().max().clamp_min(1e-30))
