"""The numbers of an epoch of classification, and the rule of its best epoch."""

from __future__ import annotations

from convattn.runs.metrics import BASE_COLUMNS, Column

_EPOCH, _STEP, _RATE, _SPEED = BASE_COLUMNS
COLUMNS = (
    _EPOCH,
    _STEP,
    _RATE,
    Column("train_loss", "train loss", "loss"),
    Column("train_acc", "train acc", "share", 6),
    Column("val_loss", "val loss", "loss"),
    Column("val_top1", "top-1", "share", 7),
    Column("val_top5", "top-5", "share", 7),
    _SPEED,
)
METRICS = tuple(column.name for column in COLUMNS)
BEST = ("val_top1", "-val_loss")
