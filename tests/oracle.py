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
        full = torch.zeros_like(x)
        full[:, self.stay] = F.group_norm(
            x[:, self.stay], own.num_groups, own.weight[self.stay], own.bias[self.stay], own.eps
        )
        return full


def masked(original: nn.Module, plan: PruningPlan) -> nn.Module:
    """A float64 copy of the original with zeros where the plan removes something."""
    model = copy.deepcopy(original).double().eval()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, dims in plan.removed.items():
        for dim, indices in dims.items():
            tensors[name].data.index_fill_(dim, torch.tensor(indices), 0)
    for name, module in list(model.named_modules()):
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
