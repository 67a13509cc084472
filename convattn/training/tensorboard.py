"""TensorBoard events of a training, which goes on where they cannot be written."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Write TensorBoard events into ``FOLDER/tensorboard``.

    The first event that cannot be written, as on a full disk, is noted; the later ones are left
    out. ``metrics.csv`` has the same numbers.

    Args:
        folder: the folder of the run.
        note: shows a sentence.
    """

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        super().__init__(folder, name="", version="tensorboard")
        self._note = note
        self._has_failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars."""
        self._attempt(super().log_metrics, metrics, step)

    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Write the settings."""
        self._attempt(super().log_hyperparams, params, metrics, step)

    def save(self) -> None:
        """Write what waits to be written."""
        self._attempt(super().save)

    def finalize(self, status: str) -> None:
        """Write what waits to be written, and close the file."""
        self._attempt(super().finalize, status)

    def _attempt(self, write: Callable[..., Any], *arguments: Any) -> None:
        if self._has_failed:
            return
        try:
            write(*arguments)
        except Exception as error:  # Lightning raises ValueError for an OSError
            self._has_failed = True
            self._note(
                f"TensorBoard's events cannot be written and are left out from here on: "
                f"{error.__cause__ or error}"
            )
