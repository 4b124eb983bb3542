"""Information independence: how little of a filter the other filters of its layer already hold.

Method A's second metric is about correlation between filters and larger for filters worth keeping; its formula is not
public. ``l2_all`` and ``l2_knn`` see the scale of a filter, ``correlation`` does not.
"""

from __future__ import annotations

from torch import Tensor

from infoprune.criteria.measures.distances import absolute_correlation, mean_of_nearest, pairwise_l2, sum_of_l2

INDEPENDENCES = ("l2_all", "l2_knn", "correlation")


def independence(filters: Tensor, estimator: str, neighbours: int = 5) -> Tensor:
    """Return the information independence of each filter of a layer.

    Args:
        filters: (N, C, K) float64.
        estimator: ``"l2_all"``: mean distance to all other filters; ``"l2_knn"``: mean distance to the nearest ones;
            ``"correlation"``: one minus the mean absolute Pearson correlation with the others (filters of a single
            weight, which always correlate fully, fall back to ``l2_all``).
        neighbours: Number of nearest filters for ``l2_knn``, cut to N - 1.

    Returns:
        (N,); 0 for a layer of one filter.
    """
    rows = filters.flatten(1)
    others = len(rows) - 1
    if others < 1:
        return rows.new_zeros(len(rows))
    if estimator == "correlation" and rows.shape[1] > 1:
        return 1 - (absolute_correlation(rows).sum(dim=1) - 1) / others
    if estimator == "l2_knn":
        return mean_of_nearest(pairwise_l2(rows), neighbours)
    return sum_of_l2(rows) / others
