"""Convolutions with paths of their own: depth-wise, followed by a GELU, feed-forward networks."""
