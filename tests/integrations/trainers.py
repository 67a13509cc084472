"""A trainer of a user, in a module that imports nothing of this package."""

from __future__ import annotations

from ultralytics.models.yolo.detect import DetectionTrainer


class Mine(DetectionTrainer):
    """Ultralytics' trainer by another name."""
