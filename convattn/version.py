"""The version of this package, which any of its modules may import."""

__version__ = "0.1.0"
