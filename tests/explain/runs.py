"""Synthetic run folders with known numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_run(
    folder: Path,
    *,
    class_names: Sequence[str] = ("ant", "bee", "cat"),
    images_per_class: int = 4,
    mistakes: Sequence[tuple[int, int, float]] = ((1, 2, 0.625), (5, 0, 0.875)),
    epochs: int = 3,
) -> Path:
    """Write a run; ``mistakes`` are (index of an image, predicted class, probability)."""
    folder.mkdir()
    classes = range(len(class_names))
    labels = [label for label in classes for _ in range(images_per_class)]
    wrong = {index: (predicted, probability) for index, predicted, probability in mistakes}
    predictions = [(i, label, *wrong.get(i, (label, 0.99))) for i, label in enumerate(labels)]
    confusion = [[0 for _ in classes] for _ in classes]
    for _, label, predicted, _ in predictions:
        confusion[label][predicted] += 1
    write_table(
        folder / "metrics.csv",
        "epoch step lr train_loss train_acc val_loss val_top1 val_top5 images_per_second",
        [
            (e, 10 * e, 0.1 / e, 2 / e, 1 - 1 / e, 3 / e, 1 - 2 / 3**e, 1, 800)
            for e in range(1, epochs + 1)
        ],
    )
    write_table(
        folder / "predictions.csv",
        "index path label predicted probability label_probability",
        [(i, f"val/{i}.png", *prediction, 0.1) for i, *prediction in predictions],
    )
    evaluation: dict[str, Any] = {
        "model": "glnet_nano",
        "data": "insects",
        "class_names": list(class_names),
        "images": len(labels),
        "top1": 1 - len(wrong) / len(labels),
        "top5": 0.9876,
        "loss": 0.12345,
        "images_per_second": 2143.4,
        "parameters": 187432,
        "per_class": [
            {"name": n, "images": sum(row), "accuracy": row[i] / sum(row)}
            for i, (n, row) in enumerate(zip(class_names, confusion, strict=True))
        ],
        "confusion": confusion,
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "config.yaml").write_text("model: glnet_nano\ndata: insects\nepochs: 3\n")
    start = {"time": "2026-01-02 03:04:05 +0000", "command": "convattn train --data insects"}
    environment = {"torch": "2.8.0", "git_commit": None, "gpus": [], "starts": [start]}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def write_table(path: Path, columns: str, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        writer.writerows(rows)
