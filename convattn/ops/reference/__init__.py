"""The operators straight from their formulas: plain, slow, and run anywhere."""
