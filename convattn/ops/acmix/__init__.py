"""The convolution path of ACmix."""
