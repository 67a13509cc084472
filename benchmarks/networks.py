"""Names of well-known networks, and groups of networks to compare."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import Options
from convattn.bench.cases import Group
from convattn.bench.models import Setting, model_case

RESNET, SWIN, CONVNEXT = "resnet50", "swin_tiny_patch4_window7_224", "convnext_tiny"
DEIT = "deit_tiny_patch16_224"


def network_group(
    title: str,
    names: Sequence[str],
    options: Options,
    *,
    dtype: str,
    train: bool = False,
    compiled: bool = False,
    weight: float = 1.0,
) -> Group:
    """Return a group of networks, for images of 224 x 224, or 32 x 32 in a quick run."""
    side = 32 if options.quick else 224
    setting = Setting(
        size=(side, side),
        batch=options.batch,
        device=options.device,
        dtype=dtype,
        train=train,
        compile=compiled,
    )
    words = [title, *(["compiled"] if compiled else []), dtype]
    return Group(
        name=", ".join(words),
        cases=[model_case(name, setting) for name in names],
        device=options.device,
        dtype=dtype,
        settings=setting.as_dict(),
        weight=weight * (2.0 if compiled else 1.0),
        apart=options.apart,
    )
