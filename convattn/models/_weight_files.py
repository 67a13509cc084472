"""Read weight files of PyTorch and safetensors, and find the key that holds the weights."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PREFIXES = ("module.", "_orig_mod.")  # of names, from wrappers of the model
_PICKLE, _ZIP = b"\x80", b"PK"  # first bytes of files of torch.save, in the old and new format


def unwrap(content: Any, name: str, wrappers: Sequence[str]) -> tuple[str, dict[str, Tensor]]:
    """Return the key that holds the weights ("" if the content is a state dict), and the weights.

    Args:
        content: the content of the file.
        name: name of the file, for errors.
        wrappers: keys to try in this order; a single key must exist.

    Raises:
        ValueError: content without weights, or with entries that are not tensors.
    """
    keys = list(content) if isinstance(content, Mapping) else []
    # The caller chose a single key, so no other key is tried.
    absent = wrappers[0] if len(wrappers) == 1 else ""
    key = next((k for k in wrappers if k in keys and content[k]), absent)
    state = content if not key else content.get(key) if keys else None
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{name} holds no weights{f' under {key!r}' if key else ''}; "
            f"it is a {type(content).__name__} with the keys {keys[:8]}"
        )
    strange = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if strange:
        raise ValueError(f"{name} holds entries that are not tensors: {listed(strange)}")
    bare = {_without_prefixes(str(k)): v for k, v in state.items()}
    if len(bare) < len(state):
        raise ValueError(f"{name} holds entries that differ in {_PREFIXES} alone")
    return key, bare


def _without_prefixes(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def read(path: Path) -> Any:
    """Return the content of a file of torch.save or safetensors; no code of the file is run."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or is not a safetensors file ({error})") from error
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] != _PICKLE and start != _ZIP:
        raise ValueError(
            f"{path} is not a file of torch.save: it starts with {start!r}. A failed "
            "download is often a web page instead of the file"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged or incomplete ({_first_line(error)}); download it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains objects other than tensors; such a pickle can run any code, so it "
            f"was refused ({_first_line(error)}). If you trust its source, allow these objects "
            "with torch.serialization.add_safe_globals, or save the state dict alone"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "nsupported" in line), lines[0])


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, for an error message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
