"""Measure time and memory of a training step: forward, backward, AdamW.

python -m benchmarks.training
python -m benchmarks.training --device cuda

On a GPU every network is also measured after ``torch.compile``.
"""

from __future__ import annotations

import sys

from benchmarks.common import Options, main
from benchmarks.networks import RESNET, SWIN, network_group
from convattn.bench.cases import Group

GROUPS = (
    ("GLNet and Swin", (SWIN, "glnet_stl")),
    ("ResNets", (RESNET, "acmix_resnet50")),
)
_QUICK = (("nano", ("glnet_nano", "acmix_resnet_nano")),)


def plan(options: Options) -> list[Group]:
    """Return a group for each comparison, data type, and compiled or not."""
    return [
        network_group(title, names, options, dtype=dtype, train=True, compiled=compiled)
        for dtype in options.dtypes
        for compiled in ((False, True) if options.compile else (False,))
        for title, names in (_QUICK if options.quick else GROUPS)
    ]


if __name__ == "__main__":
    sys.exit(main("training", about=__doc__ or "", plan=plan, budget=200, apart=True))
