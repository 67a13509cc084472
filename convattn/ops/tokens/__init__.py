"""Operators on tokens: attention heads, linear layers, layer norm."""
