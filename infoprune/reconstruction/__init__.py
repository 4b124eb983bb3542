"""Fit the layers that read removed channels to their former outputs by least squares.

A layer whose inputs lost channels gives other outputs. A linear regression from its remaining inputs to its former
outputs gives the layer's new weights. The layers are fitted from first to last, each on the inputs that the fitted
layers before it give, so that errors do not accumulate. The last layer of a residual branch also compensates the error
of the stream that its outputs are added to. Nothing is trained.
"""

from infoprune.reconstruction.few_examples import few_examples
from infoprune.reconstruction.reconstruct import fit_readers, reconstruct

__all__ = ["few_examples", "fit_readers", "reconstruct"]
