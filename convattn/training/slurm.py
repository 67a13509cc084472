"""Requeueing of a SLURM job whose time ends before its training."""

from __future__ import annotations

import os
import re
import subprocess


def is_slurm_job() -> bool:
    """Return whether this process is part of a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def was_requeued() -> bool:
    """Return whether this job has run before and was queued again."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return is_slurm_job() and count.isdigit() and int(count) > 0


def requeue() -> str:
    """Queue this SLURM job again; return a sentence on the success or the error."""
    job = os.environ.get("SLURM_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        job = f"{array}_{task}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return "the job is not queued again: SLURM_JOB_ID is not set"
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the job is not queued again: {' '.join(command)}: {error}"
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        return f"the job is not queued again: {' '.join(command)}: {reason}"
    return f"job {job} is queued again"
