"""Training, evaluating and using segmenters, which predict a class per pixel."""
