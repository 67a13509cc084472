"""What a trained network sees: slot maps, pictures and the report of a run."""
