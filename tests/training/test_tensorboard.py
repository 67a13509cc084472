from __future__ import annotations

from pathlib import Path

from convattn.training.tensorboard import TensorBoard


def test_scalars_are_written(tmp_path: Path) -> None:
    notes: list[str] = []
    logger = TensorBoard(tmp_path, notes.append)
    logger.log_metrics({"loss": 1.5}, 3)
    logger.finalize("success")
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"loss" in events.read_bytes()
    assert notes == []


def test_events_that_cannot_be_written_are_noted_once_and_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder belongs")
    notes: list[str] = []
    logger = TensorBoard(tmp_path, notes.append)
    for step in range(3):
        logger.log_metrics({"loss": 1.5}, step)
        logger.save()
    logger.finalize("success")
    (note,) = notes
    assert note.startswith("TensorBoard's events cannot be written and are left out from here on: ")
    assert str(tmp_path / "tensorboard") in note
