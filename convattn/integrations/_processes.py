"""What the processes that Ultralytics starts for several devices learn of this package."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultralytics.utils import dist
from ultralytics.utils.callbacks import default_callbacks

_INFORMED = "imports_convattn"  # marks the function that writes our import into the file


def inform(callback: Callable[[Any], None]) -> None:
    """Let the processes of ``train(device=[0, 1])`` import the module of ``callback``.

    A trainer gives its callbacks to these processes, and the file that they run begins with the
    import: the one holds for a file that another function writes, the other for a trainer whose
    callbacks were taken away. Calling this again changes nothing.

    Args:
        callback: A function of a module whose import does all that a new process needs.
    """
    started = default_callbacks["on_pretrain_routine_start"]
    if callback not in started:
        started.append(callback)
    write = dist.generate_ddp_file
    if hasattr(write, _INFORMED):
        return

    @functools.wraps(write)
    def generate_ddp_file(trainer: Any) -> str:
        path = write(trainer)
        program = Path(path).read_text(encoding="utf-8")
        start = f"import sys\nsys.path = {sys.path!r}\nimport {callback.__module__}\n"
        Path(path).write_text(start + program, encoding="utf-8")
        return path

    setattr(generate_ddp_file, _INFORMED, True)
    dist.generate_ddp_file = generate_ddp_file
