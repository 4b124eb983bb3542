"""Compute costs of layers from their widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class CostModel:
    """A sum of products of widths, each width linear in the groups' kept units.

    Args:
        terms: for each product a factor, and its widths as ``(fixed, coefficients)``.

    Example:
        >>> macs = CostModel([(9.0, [(3.0, np.array([0.0, 0.0])), (0.0, np.array([1.0, 0.0]))])])
        >>> macs(np.array([8.0, 4.0]))
        216.0
    """

    def __init__(self, terms: Sequence[tuple[float, Sequence[tuple[float, np.ndarray]]]]) -> None:
        longest = max((len(factors) for _, factors in terms), default=0)
        groups = next((len(factors[0][1]) for _, factors in terms if factors), 0)  # scalars have no factors
        one = (1.0, np.zeros(groups))
        self._scale = np.array([scale for scale, _ in terms])
        self._fixed, self._coefficients = [], []
        for position in range(longest):
            column = [factors[position] if position < len(factors) else one for _, factors in terms]
            self._fixed.append(np.array([fixed for fixed, _ in column]))
            self._coefficients.append(
                np.array([coefficients if len(coefficients) else np.zeros(groups) for _, coefficients in column])
            )

    def __call__(self, kept: np.ndarray) -> float:
        """Return the sum at numbers of kept units.

        Args:
            kept: (groups,) kept units of each group.
        """
        value = self._scale.copy()
        for fixed, coefficients in zip(self._fixed, self._coefficients, strict=True):
            value *= fixed + coefficients @ kept
        return float(value.sum())

    def gradient(self, kept: np.ndarray) -> np.ndarray:
        """Return the derivative of the sum by each group's kept units.

        Args:
            kept: (groups,) kept units of each group.

        Returns:
            (groups,) derivatives of the sum.

        Example:
            >>> first, second = (0.0, np.array([1.0, 0.0])), (0.0, np.array([0.0, 2.0]))
            >>> CostModel([(9.0, [first, second])]).gradient(np.array([8.0, 4.0]))
            array([ 72., 144.])
        """
        factors = [fixed + terms @ kept for fixed, terms in zip(self._fixed, self._coefficients, strict=True)]
        total = np.zeros_like(kept)
        for position, terms in enumerate(self._coefficients):
            rest = self._scale.copy()
            for other, factor in enumerate(factors):
                if other != position:
                    rest *= factor
            total += rest @ terms
        return total
