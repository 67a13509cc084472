"""Build a detector by the name of its method."""

from __future__ import annotations

import inspect
from typing import Any

from convattn.checks import check_choice
from convattn.names import did_you_mean
from convattn.tasks.detection.models.cascade import CascadeMaskRCNN
from convattn.tasks.detection.models.detector import Detector
from convattn.tasks.detection.models.rcnn import FasterRCNN, MaskRCNN
from convattn.tasks.detection.models.retinanet import RetinaNet

METHODS: dict[str, type[Detector]] = {
    "retinanet": RetinaNet,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "cascade_mask_rcnn": CascadeMaskRCNN,
}


def build_detector(method: str, backbone: str, num_classes: int, **arguments: Any) -> Detector:
    """Build a detector.

    Args:
        method: "retinanet", "faster_rcnn", "mask_rcnn" or "cascade_mask_rcnn".
        backbone: the name of a model, as in `convattn.create_model`.
        num_classes: number of classes, without the background.
        **arguments: arguments of the method's class; `method_arguments` lists them.

    Raises:
        ValueError: an unknown name, a number out of range, or a backbone without maps of
            increasing strides.
        TypeError: an argument that the method does not have.
    """
    check_choice("method", method, METHODS)
    known = method_arguments(method)
    for name in arguments:
        if name not in known:
            raise TypeError(
                f"{method} takes no argument {name!r}{did_you_mean(name, known)} "
                f"Known: {', '.join(known)}"
            )
    return METHODS[method](backbone, num_classes, **arguments)


def method_arguments(method: str) -> list[str]:
    """Return the sorted names of the arguments that a method has."""
    names: set[str] = set()
    for kind in METHODS[method].__mro__:
        if not issubclass(kind, Detector):
            break
        parameters = inspect.signature(kind).parameters.values()
        names |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return sorted(names)
