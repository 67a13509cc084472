"""Maps of another size: interpolation, and averages over a grid of bins."""
