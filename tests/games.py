"""Games whose payoffs are a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TableGame:
    """A game whose payoffs are a table: (images, 2 ** players)."""

    payoffs: Tensor

    def __post_init__(self) -> None:
        self.images, size = self.payoffs.shape
        self.players = size.bit_length() - 1
        self.full = self.payoffs[:, -1]
        self.evaluations = 0

    def value(self, present: Tensor) -> Tensor:
        self.evaluations += 1
        code = (present.long() * 2 ** torch.arange(self.players)).sum(dim=1)
        return self.payoffs[torch.arange(self.images), code]


def random_game(players: int, images: int = 3, seed: int = 0) -> TableGame:
    return TableGame(
        torch.randn(images, 2**players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
