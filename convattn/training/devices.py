"""Messages for devices that Lightning refuses: the setting, its value, and a value that works."""

from __future__ import annotations

import torch

from convattn.names import shown
from convattn.training.config import RunConfig


def device_error(config: RunConfig, error: Exception) -> str:
    """Return why Lightning cannot use the devices of a configuration, and what to write.

    Args:
        config: its ``accelerator``, ``devices`` and ``strategy``.
        error: what Lightning raised.
    """
    here = _accelerators()
    asked = config.accelerator
    known = {"auto", *here, *(["gpu"] if len(here) > 1 else [])}
    doctor = "`convattn doctor` shows the devices"
    if asked not in known:
        return (
            f"accelerator={shown(config.accelerator)} is not possible here: this machine has "
            f"{' and '.join(here)}; write accelerator={here[0]} or accelerator=auto ({doctor})"
        )
    reason = str(error).split(". ")[0].strip().removesuffix(".")
    if "strategy" in reason.lower():
        return (
            f"strategy={shown(config.strategy)} is not possible here: {reason}; write strategy=auto"
        )
    if config.devices == "auto":
        return (
            f"accelerator={config.accelerator}, devices=auto, strategy={shown(config.strategy)} is "
            f"not possible here: {reason}; write accelerator=cpu or strategy=auto ({doctor})"
        )
    count = torch.cuda.device_count() if here[0] == "cuda" and asked != "cpu" else 1
    right = "devices=1" if count == 1 else f"a number from devices=1 to devices={count}"
    return (
        f"devices={shown(config.devices)} is not possible with "
        f"accelerator={config.accelerator}: {reason}; write {right}, or devices=auto ({doctor})"
    )


def _accelerators() -> list[str]:
    """Return the accelerators of this machine, the fastest first."""
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]
