"""Convolutions with a path of their own: depth-wise, and with a GELU after it."""
