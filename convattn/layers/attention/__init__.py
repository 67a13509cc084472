"""Attentions: the parts that ACmix takes, and the block of GLNet that has attention alone."""
