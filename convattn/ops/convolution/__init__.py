"""Convolutions: depth-wise, with a GELU, and feed-forward networks."""
