"""A trainer of a user, in a module that does not import this package."""

from __future__ import annotations

from ultralytics.models.yolo.detect import DetectionTrainer


class Mine(DetectionTrainer):
    """Ultralytics' trainer, unchanged."""
