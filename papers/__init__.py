"""The figures of the papers beside ours: every difference, and the page docs/models.md."""
