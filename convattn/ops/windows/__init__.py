"""Window attention, from q, k and v or from the input map of their projections."""
