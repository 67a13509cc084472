"""Reading of files without Pillow's warnings, on any number of threads."""

from __future__ import annotations

import threading
import warnings


class _NoWarnings:
    """Ignores warnings while at least one thread is inside.

    `warnings.catch_warnings` in two threads at once can leave the filters of one of them in place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._saved is not None:
                self._saved.__exit__(None, None, None)


no_warnings = _NoWarnings()
