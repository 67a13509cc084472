"""Import this package in the processes that Ultralytics starts for training on several devices."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultralytics.utils import dist
from ultralytics.utils.callbacks import default_callbacks

_MARK = "imports_convattn"  # an attribute of the wrapper of generate_ddp_file


def import_in_processes(callback: Callable[[Any], None]) -> None:
    """Make the processes of ``train(device=[0, 1])`` import the module of ``callback``.

    There are two ways, because either can be lost. A trainer pickles its callbacks for the
    processes: this works if another function writes the file that the processes run. The file
    begins with the import: this works if the callbacks of the trainer were removed. A second call
    changes nothing.

    Args:
        callback: a function whose module, when it is imported, registers what a process needs.
    """
    callbacks = default_callbacks["on_pretrain_routine_start"]
    if callback not in callbacks:
        callbacks.append(callback)
    write = dist.generate_ddp_file
    if hasattr(write, _MARK):
        return

    @functools.wraps(write)
    def generate_ddp_file(trainer: Any) -> str:
        path = write(trainer)
        program = Path(path).read_text(encoding="utf-8")
        start = f"import sys\nsys.path = {sys.path!r}\nimport {callback.__module__}\n"
        Path(path).write_text(start + program, encoding="utf-8")
        return path

    setattr(generate_ddp_file, _MARK, True)
    dist.generate_ddp_file = generate_ddp_file
