"""What a training leaves on disk: the one owner of the formats, which knows no model."""
