"""Sliding-window attention. The function is in `attention`, and its paths are in other modules."""
