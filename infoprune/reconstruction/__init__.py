"""Fit the layers that read a cut to their former outputs by least squares.

A layer whose inputs lost channels puts out something else. What its remaining inputs tell about its former outputs is
a linear regression, and its solution are the layer's new weights. Layer by layer from the first, each is fitted to the
inputs that the layers before it now give, so that errors do not add up. A layer that ends the branch of a residual
block also makes up for the error of the stream that its outputs are added to. Nothing is trained.
"""

from infoprune.reconstruction.few_examples import few_examples
from infoprune.reconstruction.reconstruct import fit_readers, reconstruct

__all__ = ["few_examples", "fit_readers", "reconstruct"]
