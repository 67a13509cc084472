"""The model card, which is stored with weights so that one file is enough to predict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from convattn.data import Preprocess, ValueRange, check_range, nfc
from convattn.names import listed, shown
from convattn.runs.files import to_json
from convattn.version import __version__

FORMAT = "convattn-2"
_EARLIER = "convattn-classification-1"


@dataclass(frozen=True)
class ModelCard:
    """Facts on the weights of a checkpoint.

    Args:
        model: name of the model.
        model_args: arguments of the model except ``num_classes`` and ``in_chans``.
        class_names: in the order of the scores, in Unicode form NFC. A task may have no classes.
        preprocess: the preprocessing of the model's input.
        value_range: the values of float and deep images that became 0 and 255 in training; None
            if all images had 8 bits, and in cards of versions without this field.
        data: name of the data set of the training.
        data_options: the options with which this data set was opened.
        epoch: number of trained epochs.
        metrics: the metrics of that epoch.
        version: version of convattn.
        task: name of the task.
        method: name of the method, for a task with several methods; "" otherwise.
        kernels: the CPU kernels of the training; "" if they are unknown.
        unknown: keys of a later version, which are written back.
    """

    model: str
    model_args: dict[str, Any]
    class_names: tuple[str, ...]
    preprocess: Preprocess
    value_range: ValueRange | None = None
    data: str = ""
    data_options: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    version: str = __version__
    task: str = "classification"
    method: str = ""
    kernels: str = ""
    unknown: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(nfc, self.class_names)))

    def to_json(self) -> str:
        """Return the card as JSON."""
        values = {**asdict(self), "preprocess": self.preprocess.to_dict()}
        return to_json({"format": FORMAT, **values.pop("unknown"), **values})

    @staticmethod
    def from_json(text: str, source: str = "") -> ModelCard:
        """Read a card of this format or of the earlier format.

        Args:
            text: what `to_json` wrote.
            source: the file that holds the card, for messages.

        Raises:
            ValueError: the card has a later format, lacks a key, or holds a value of another type;
                the message names ``source`` and the key.
        """
        where = f"the model card of {shown(source)}" if source else "the model card"
        values = _parse(text, where)
        known = {f.name: values.pop(f.name) for f in fields(ModelCard) if f.name in values}
        if known.pop("unknown", None) is not None:
            raise _wrong(where, "has a key 'unknown', which no version of convattn writes")
        for key, (is_right, expected) in _KEYS.items():
            if key in known and not is_right(known[key]):
                raise _wrong(
                    where, f"must hold {expected} in {key!r}, got {shown(repr(known[key]))}"
                )
        if not known["class_names"] and known.get("task", "classification") == "classification":
            raise _wrong(where, "must hold a list of names in 'class_names', got []")
        try:
            known["value_range"] = check_range(known.get("value_range"))
        except (ValueError, TypeError) as error:
            raise _wrong(where, f"holds a wrong 'value_range': {error}") from error
        known["preprocess"] = _preprocess(known["preprocess"], where)
        return ModelCard(**{**known, "class_names": tuple(known["class_names"]), "unknown": values})


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(where, f"is not JSON: {error}") from error
    found = values.pop("format", None) if isinstance(values, dict) else None
    if found not in (FORMAT, _EARLIER):
        if isinstance(found, str) and found.startswith("convattn-"):
            version = shown(values.get("version", "unknown"))
            raise ValueError(
                f"{where} has the format {shown(found)!r}, written by convattn {version}; this is "
                f"convattn {__version__}, which reads {FORMAT!r}: update convattn"
            )
        raise _wrong(where, f"has the format {shown(found)!r} instead of {FORMAT!r}")
    if missing := [key for key in _REQUIRED if key not in values]:
        raise _wrong(where, f"has no {missing[0]!r}")
    return values


def _preprocess(values: dict[str, Any], where: str) -> Preprocess:
    """Check and read the preprocessing, each value of which changes the result."""
    for key in values:
        if key not in _PREPROCESS:
            raise _wrong(where, f"has {shown(key)!r} in 'preprocess', which is unknown here")
    for key, (is_right, expected) in _PREPROCESS.items():
        if key not in values:
            if key in ("input_size", "mean", "std"):
                raise _wrong(where, f"has no {key!r} in 'preprocess'")
        elif not is_right(values[key]):
            found = shown(repr(values[key]))
            raise _wrong(where, f"must hold {expected} in 'preprocess.{key}', got {found}")
    try:
        return Preprocess.from_dict(values)
    except ValueError as error:
        raise _wrong(where, f"holds a wrong 'preprocess': {error}") from error


def _wrong(where: str, what: str) -> ValueError:
    return ValueError(
        f"{where} {what}; it was changed, or written by another program or a later version than "
        f"convattn {__version__}: take a file that convattn train wrote, or update convattn"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0


def _is_length(value: Any) -> bool:
    return value is None or (_is_count(value) and value > 0)


def _are_finite(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_finite, value))


def _are_positive(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_positive, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_is_count(side) and side for side in value)
    )


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


_Check = tuple[Callable[[Any], bool], str]


def _one_of(*texts: str) -> _Check:
    return (lambda value: value in texts), "one of " + listed(texts)


_REQUIRED = ("model", "model_args", "class_names", "preprocess")
_TEXT: _Check = (_is_text, "a text")
_MAPPING: _Check = (_is_mapping, "keys and values")
_KEYS: dict[str, _Check] = {
    **dict.fromkeys(("model", "data", "version", "task", "method", "kernels"), _TEXT),
    **dict.fromkeys(("model_args", "preprocess", "data_options"), _MAPPING),
    "class_names": (_are_names, "a list of names"),
    "epoch": (_is_count, "a whole number"),
    "metrics": (_are_metrics, "names and numbers"),
}
_PREPROCESS: dict[str, _Check] = {
    "input_size": (_is_size, "channels, height and width"),
    "mean": (_are_finite, "a list of numbers"),
    "std": (_are_positive, "a list of numbers above 0"),
    "interpolation": _one_of(
        "bicubic", "bilinear", "box", "hamming", "lanczos", "nearest", "nearest-exact", "random"
    ),
    "crop_pct": (_is_positive, "a number above 0"),
    "crop_mode": _one_of("center", "squash", "border"),
    **dict.fromkeys(("short_side", "long_side"), (_is_length, "a whole number above 0, or null")),
}
