"""ACmix: convolution and attention that share their projections."""

from convattn.layers.acmix.acmix import ACmix as ACmix
