"""The training engine that every task shares."""
