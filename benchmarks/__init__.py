"""Benchmarks of operators, backbones, training and scaling, and the page of their results."""
