"""Sliding-window attention: `attention` has the function, the other files a path each."""
