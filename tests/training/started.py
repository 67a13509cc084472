"""A training in a process of its own: python -m tests.training.started METHOD WORDS of convattn.

The method starts its loading processes: fork, spawn or forkserver.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from convattn.cli import main

HOME = Path(__file__).parents[2]


@contextlib.contextmanager
def started(
    log: Path, *words: str, method: str = "fork", **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a training in a session of its own; nothing of the session is left at the end."""
    command = [sys.executable, "-m", "tests.training.started", method, "train", *words]
    environment = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", **variables}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        for pid in session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()


def wait_for(path: Path, process: subprocess.Popen[bytes], lines: int = 0) -> None:
    """Wait until a file has that many lines."""
    end = time.monotonic() + 300
    while not path.is_file() or len(path.read_bytes().splitlines()) < lines:
        assert process.poll() is None, "the training has ended"
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.01)


def session(number: int) -> list[int]:
    """Return the processes of a session that are alive, whatever their group."""
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_in(pid, number)
    ]


def all_ended(number: int, seconds: float = 10) -> bool:
    """Return whether no process of a session is left after a while, at once if none is."""
    end = time.monotonic() + seconds
    while session(number) and time.monotonic() < end:
        time.sleep(0.02)
    return not session(number)


def _is_in(pid: int, number: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return words[0] != "Z" and int(words[3]) == number


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
