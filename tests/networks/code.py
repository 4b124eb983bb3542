"""Blocks whose Python code keeps widths, features or results, or hands them on in objects."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.networks.building import block, chain, conv


class Parts(nn.Module):
    """Parts whose sizes the module keeps in a list, in a number, or in twice that number."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.sizes = [(5, 3, 4), [4, 4, 4]][n % 2]
        self.kind = n // 2 % 3
        self.part, self.both = 4, 8
        total = {0: sum(self.sizes), 1: 3 * self.part, 2: self.both}[self.kind]
        last = {0: self.sizes[-1], 1: self.part, 2: self.both // 2}[self.kind]
        self.expand, self.inner = conv(c, total, 1), conv(last, last)
        self.scale = nn.Parameter(torch.randn(last))
        self.shape = (last, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        *rest, last = self.expand(x).split((self.sizes, self.part, self.both // 2)[self.kind], dim=1)
        return torch.cat([*rest, self.inner(last).relu() * self.scale.view(self.shape)], 1)


@block
def parts(c: int, n: int) -> nn.Module:
    made = Parts(c, n)
    return chain(made, out=made.expand.out_channels)


class Remembering(nn.Module):
    """Computes a factor of every channel once for each device."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(c, 1, 1))
        self.known: dict[str, Tensor] = {}
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        device = str(x.device)
        if device not in self.known:
            self.known[device] = self.factor.tanh()
        return x * self.known[device]


@block
def remembering(c: int, n: int) -> nn.Module:
    return Remembering(c)


class Reading(nn.Module):
    """Takes what it has made for as wide as what came in: the whole of it, or two of its three parts."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.parted = bool(n % 2)
        self.first, self.second = conv(c, 2 * c + 3 if self.parted else c, 1), conv(c, c)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if not self.parted:
            return self.second(self.first(x).reshape(b, c, -1).tanh().unflatten(2, (h, w)))
        query, context, gates = self.first(x).split((c, c, 3), 1)
        return query * (self.second(context) * gates[:, :1] + gates[:, 1:2] - gates[:, 2:])


@block
def reading(c: int, n: int) -> nn.Module:
    return Reading(c, n)


class Checking(nn.Module):
    """Refuses another width than it was made for; two of its numbers are the same, and it asks for one of them."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.channels = c
        self.steps = self.width = (c, 6)[n % 2]
        self.wide, self.narrow = conv(c, self.width, 1), conv(self.width, c, 1)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"{x.shape[1]} channels, not {self.channels}")
        return x + self.narrow(self.wide(x).relu().reshape(-1, self.width, *x.shape[2:]))


@block
def checking(c: int, n: int) -> nn.Module:
    return Checking(c, n)


class Keeping(nn.Module):
    """Keeps its features for whoever asks."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.inner, self.outer = conv(c, 6), conv(6, c)
        self.out_channels = c

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.inner(x).relu()
        return self.outer(self.features)


@block
def keeping(c: int, n: int) -> nn.Module:
    return Keeping(c)


@dataclass
class Features:
    """What a layer hands to the code around it."""

    maps: list[Tensor]
    gate: Tensor


class Handing(nn.Module):
    """Reads what a layer returns in an object, a mapping, or a generator."""

    class Inner(nn.Module):
        def __init__(self, c: int, n: int) -> None:
            super().__init__()
            self.a, self.b, self.gate = conv(c, 6), conv(c, 6, 1), conv(c, 6, 1)
            self.kind = n % 3

        def forward(self, x: Tensor) -> Any:
            found = Features([self.a(x).relu(), self.b(x)], self.gate(x.mean((2, 3), keepdim=True)).sigmoid())
            if self.kind == 0:
                return found
            return UserDict(vars(found)) if self.kind == 1 else (getattr(found, name) for name in ("maps", "gate"))

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.inner = self.Inner(c, n)
        self.out_channels = 6

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        if isinstance(found, UserDict):
            found = Features(**found)
        maps, gate = (found.maps, found.gate) if isinstance(found, Features) else found
        return sum(maps) * gate


@block
def handing(c: int, n: int) -> nn.Module:
    return Handing(c, n)
