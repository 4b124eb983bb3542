"""A network for tests of Shapley values, with gates and without."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WHOLE = {"min_coalition": 0.0}
"""Coalitions of all sizes, as in Shapley's definition."""


class Net(nn.Module):
    """Shortcut, in-place activation, a tensor from before the layer used behind it, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 7)
        self.head = nn.Linear(7, 4)
        for parameter in self.parameters():
            parameter.data.mul_(3)

    def forward(
        self, x: Tensor, gates: dict[str, Tensor] | None = None, fill: dict[str, Tensor] | None = None
    ) -> Tensor:
        self.activations: dict[str, Tensor] = {}

        def gate(name: str, x: Tensor) -> Tensor:
            self.activations[name] = x.clone()
            present = (gates or {}).get(name, torch.ones(()))
            return x * present + (fill or {}).get(name, torch.zeros(())) * (1 - present)

        scale = 1 + x.mean(dim=(1, 2, 3))[:, None]
        x = gate("stem", torch.relu(self.stem(x)))
        out = gate("conv1", self.act(self.bn1(self.conv1(x))))
        out = gate("conv2", self.bn2(self.conv2(out)))
        out = out + x
        x = gate("hidden", self.hidden(torch.relu_(out).mean(dim=(2, 3))).relu())
        return self.head(x) * scale


class Plain(Net):
    """The same without gates, as a user would write it."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        scale = 1 + x.mean(dim=(1, 2, 3))[:, None]
        x = torch.relu(self.stem(x))
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        x = self.hidden(torch.relu_(out).mean(dim=(2, 3))).relu()
        return self.head(x) * scale
