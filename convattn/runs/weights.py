"""Weights on disk: .safetensors files with a model card, and the .ckpt files of a training.

Both have checksums, which `read_ckpt` and `read_weights` verify. A .ckpt file is a zip archive of
`torch.save`, with a checksum of the whole file in the comment of the archive; in a .ckpt file that
Lightning wrote each member has a checksum. A .safetensors file has a checksum of weights and card
in its metadata.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convattn.names import shown
from convattn.runs.card import ModelCard
from convattn.runs.files import DamagedFileError, replacing

_CARD = "convattn"
_CHECKSUM = "convattn_checksum"
_BLOCK = 2**20
_LONGEST_HEADER = 100_000_000  # bytes that safetensors allows
_ZIP = b"PK\x03\x04"
_COMMENT = b"convattn crc32:%08x"
_COMMENT_SIZE = len(_COMMENT % 0)
_EMA = "ema.module."
_PROGRESS = {"card": str, "epochs_done": int, "batches_done": int}


def save_weights(weights: Mapping[str, Tensor], card: ModelCard, path: Path) -> None:
    """Write weights and card as safetensors; the file appears whole or not at all."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in storages else value  # safetensors shares none
        storages.add(storage)
    text = card.to_json()
    metadata = {_CARD: text, _CHECKSUM: _checksum(plain, text)}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write {shown(path)}: {error}") from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Read the weights of a .safetensors or .ckpt file, and their card.

    Args:
        path: a file that a training wrote; the EMA weights of a .ckpt file are read if it has some.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file is truncated or was changed.
        ValueError: convattn did not write the file, or a weight holds NaN or infinity.
    """
    with _explaining(path):
        read = _read_ckpt_weights if path.suffix == ".ckpt" else _read_safetensors
        weights, card = read(path)
    for name, value in weights.items():
        if value.is_floating_point() and not _is_finite(value):
            raise ValueError(
                f"{shown(path)} cannot be used: its weight {shown(name)} holds NaN or infinity, as "
                f"after a training that diverged (epoch {card.epoch}); take an earlier checkpoint, "
                "or train again with a lower lr"
            )
    return weights, card


def read_card(path: Path) -> ModelCard:
    """Read the card of a .safetensors file without its weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has no card.
    """
    with _explaining(path):
        return ModelCard.from_json(_card_text(_read_metadata(path)), str(path))


def has_card(path: Path) -> bool:
    """Return whether a .safetensors file has a card, or is damaged, which its reader explains."""
    try:
        return _CARD in _read_metadata(path)
    except (_DamageError, _ForeignError):
        return True


def find_checkpoint(path: str | Path, which: str = "best.safetensors") -> Path:
    """Return the path of a checkpoint.

    Args:
        path: a file, which is returned itself, or a run folder.
        which: the checkpoint of a run folder; if a .safetensors file is missing, the .ckpt file
            of the same epoch is returned.

    Raises:
        FileNotFoundError: there is nothing at ``path``, or no such checkpoint in the folder.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint or run folder {shown(path)}")
    names = (which, which.replace(".safetensors", ".ckpt"))
    for place in (folder / name for name in names for folder in (path / "checkpoints", path)):
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{shown(path)} has no {Path('checkpoints') / which}: it is not a run folder, or no epoch "
        f"of the training was finished{_whole_beside(path / 'checkpoints' / which)}"
    )


def write_ckpt(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint for a resumed training; the file appears whole or not at all.

    Args:
        content: what `torch.save` takes; only tensors and plain values are read back.
        path: the file.
    """
    with replacing(path) as temporary, temporary.open("w+b") as file:
        try:
            torch.save(dict(content), file)  # given a path, it would write the temporary name too
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # the disk is full: PyTorch hides that
                raise error.__context__ from None
            raise
        _add_comment(file)


def read_ckpt(path: Path) -> dict[str, Any]:
    """Read a checkpoint for a resumed training.

    Args:
        path: a .ckpt file of a training.

    Returns:
        Its content, tensors on the CPU; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file is truncated or was changed; the message names an undamaged
            checkpoint in the same folder, if there is one.
        ValueError: convattn did not write the file.
    """
    with _explaining(path):
        return _read_ckpt(path)


class _DamageError(Exception):
    """A file that convattn wrote was changed or truncated."""


class _ForeignError(Exception):
    """A file was not written by convattn."""


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn an internal error into one that names the checkpoint and the fix."""
    try:
        yield
    except _DamageError as error:
        beside = _whole_beside(path) or ", or train again"
        raise DamagedFileError(path, str(error), f"restore it from a copy{beside}") from error
    except _ForeignError as error:
        reason = str(error) or "is not a checkpoint"
        raise ValueError(
            f"{shown(path)} {reason}: give a run folder, or a .safetensors or .ckpt file that "
            f"convattn train wrote{_whole_beside(path)}"
        ) from error


def _read_ckpt(path: Path) -> dict[str, Any]:
    _check_file(path)
    try:
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises many types of errors
        raise _ForeignError from error
    ours = content.get(_CARD) if isinstance(content, dict) else None
    if not isinstance(ours, dict):
        raise _ForeignError
    for key, kind in _PROGRESS.items():
        if not isinstance(ours.get(key), kind):
            raise _ForeignError(f"has no {kind.__name__} in '{_CARD}.{key}'")
    return content


def _read_ckpt_weights(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    content = _read_ckpt(path)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _ForeignError("has no weights in 'state_dict'")
    prefix = _EMA if any(key.startswith(_EMA) for key in state) else "model."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return weights, ModelCard.from_json(content[_CARD]["card"], str(path))


def _check_file(path: Path) -> None:
    """Verify the checksum of a .ckpt file, or the checksums of its members if it has none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _COMMENT_SIZE))
        comment = file.read()
        if re.fullmatch(rb"convattn crc32:[0-9a-f]{8}", comment):
            if _COMMENT % _file_checksum(file, size - _COMMENT_SIZE) != comment:
                raise _DamageError("its checksum is wrong")
            return
        file.seek(0)
        start = file.read(len(_ZIP))
        try:
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
        except Exception as error:  # zipfile raises many types of errors
            if not _ZIP.startswith(start):
                raise _ForeignError from error
            raise _DamageError(f"it is cut off or overwritten ({error})") from error
    if bad is not None:
        raise _DamageError(f"the checksum of its part {shown(bad)} is wrong")


def _add_comment(file: BinaryIO) -> None:
    """Append a checksum as the comment of a zip archive, whose last two bytes are its length."""
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT_SIZE.to_bytes(2, "little"))
    checksum = _file_checksum(file, file.tell())
    file.write(_COMMENT % checksum)


def _file_checksum(file: BinaryIO, size: int) -> int:
    """Return the checksum of the first ``size`` bytes; the file position is then ``size``."""
    file.seek(0)
    value = 0
    while size:
        block = file.read(min(size, _BLOCK))
        value = zlib.crc32(block, value)
        size -= len(block)
    return value


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    metadata = _read_metadata(path)
    text = _card_text(metadata)
    try:
        weights = _read_tensors(path)
    except Exception as error:  # of safetensors, or of a header that names no type of PyTorch
        raise _DamageError(f"it is cut off or overwritten ({error})") from error
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(weights, text):
        raise _DamageError("its checksum is wrong")
    return weights, ModelCard.from_json(text, str(path))


def _read_metadata(path: Path) -> dict[str, Any]:
    """Read the texts in the header of a .safetensors file: its length, then JSON."""
    with path.open("rb") as file:
        size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise _ForeignError
        if size < 8 + length or not length:
            raise _DamageError("it is cut off")
        header = file.read(length)
    try:
        return dict(json.loads(header).get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _DamageError("its header is overwritten") from error


def _card_text(metadata: Mapping[str, Any]) -> str:
    card = metadata.get(_CARD)
    if not isinstance(card, str):
        raise _ForeignError("holds weights, but no card that names its model and classes")
    return card


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors; through a link if the path is not UTF-8, which safetensors requires."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "link.safetensors"
            link.symlink_to(path.absolute())
            return _read_tensors(link)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _checksum(weights: Mapping[str, Tensor], card: str) -> str:
    value = zlib.crc32(card.encode())
    for name in sorted(weights):
        tensor = weights[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"crc32:{value:08x}"


def _is_finite(value: Tensor) -> bool:
    if value.element_size() == 1:  # PyTorch has no isfinite of 8-bit floats
        value = value.float()
    return bool(value.isfinite().all())


def _whole_beside(path: Path) -> str:
    """Return a clause that names an undamaged checkpoint in the same folder; "" for none."""
    other = {"last": "best", "best": "last"}.get(path.stem)
    if other is None or path.suffix not in (".ckpt", ".safetensors"):
        return ""
    names = [f"{other}.ckpt"]
    if path.suffix == ".safetensors":
        names = [f"{path.stem}.ckpt", f"{other}.safetensors", f"{other}.ckpt"]
    for file in map(path.with_name, names):
        if _is_whole(file):
            return f"; {shown(file)} is whole and can be given in its place"
    return ""


def _is_whole(path: Path) -> bool:
    """Return whether a checkpoint is undamaged."""
    try:
        if path.suffix == ".ckpt":
            _check_file(path)
        else:
            _read_safetensors(path)
    except Exception:  # the checkpoint is damaged
        return False
    return True
