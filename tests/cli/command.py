"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment in which ``convattn`` is the one beside these tests."""
    return {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", **variables}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start ``convattn`` in ``folder``."""
    return subprocess.Popen(
        [sys.executable, "-m", "convattn", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def convattn(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``convattn`` in ``folder`` to its end."""
    process = start(folder, *words)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
