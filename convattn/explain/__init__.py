"""Slot maps and charts of trained networks, and the report of a run."""
