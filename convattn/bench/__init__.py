"""Measure speed and memory: computations in turns, medians with their spread, ratios by round."""
