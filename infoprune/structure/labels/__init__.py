"""Labels: one integer for every index of every dimension of every parameter and buffer.

The lowest floor of the structure engine: spaces of labels, their connected components, and the labels of a tensor.
"""

from infoprune.structure.labels.components import Labels, distinct, ranges
from infoprune.structure.labels.space import OUTSIDE, Balance, Freeze, LabelSpace, Slot, Union
from infoprune.structure.labels.tensor_labels import Axis, TensorLabels, clear_labels, labels_of, set_labels

__all__ = [
    "OUTSIDE",
    "Axis",
    "Balance",
    "Freeze",
    "LabelSpace",
    "Labels",
    "Slot",
    "TensorLabels",
    "Union",
    "clear_labels",
    "distinct",
    "labels_of",
    "ranges",
    "set_labels",
]
