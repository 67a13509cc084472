"""Measure speed and memory: computations take turns; results are medians, quartiles and ratios."""
