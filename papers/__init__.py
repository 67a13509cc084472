"""Compare the figures of the papers with ours, and write the page docs/models.md."""
