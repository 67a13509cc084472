"""What the models are trained for: classification."""
