"""The file formats of a training run: reading and writing, independent of models."""
