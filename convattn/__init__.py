"""Convolution and attention in one operator: ACmix, X-volution and GLMix."""

__version__ = "0.1.0"
