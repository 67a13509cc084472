"""Attention from every pixel to every pixel."""
