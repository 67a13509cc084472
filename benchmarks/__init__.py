"""Benchmarks: operators, backbones, training, scaling; the page that shows what they found."""
