"""Attention inside the windows of a grid, from q, k and v or from the map before them."""
