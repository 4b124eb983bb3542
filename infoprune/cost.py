"""The cost of a model: multiply-accumulates and parameters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates (MACs) for one example, and parameters.

    Convolutions, linear layers and the matrix products of attention count, as in PyTorch's ``FlopCounterMode``.
    ``nn.Bilinear`` counts, too, which that leaves out. The papers' tables call MACs "FLOPs".
    """

    macs: int
    params: int

    def ratio(self, original: Cost) -> tuple[float, float]:
        """Return the share of the original's MACs and parameters that is left.

        Args:
            original: the cost of the unpruned model.

        Returns:
            MACs and parameters, each as a share of the original.

        Example:
            >>> Cost(50, 10).ratio(Cost(100, 40))
            (0.5, 0.25)
        """
        return self.macs / max(original.macs, 1), self.params / max(original.params, 1)
