"""X-volution: attention over shifted pixels, without a softmax."""
