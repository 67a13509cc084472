"""Transforms of an image together with its boxes or masks, and batches of them."""
