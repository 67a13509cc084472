"""Patch-wise aggregation."""
