"""Measure the backbones in their deployed form, and well-known networks for comparison.

python -m benchmarks.backbones
python -m benchmarks.backbones --device cuda

On a GPU every network is also measured after ``torch.compile``.
"""

from __future__ import annotations

import sys

from benchmarks.common import Options, main
from benchmarks.networks import CONVNEXT, DEIT, RESNET, SWIN, network_group
from convattn.bench.cases import Group

# Title, networks, relative share of the time.
GROUPS = (
    ("ResNets", (RESNET, "acmix_resnet50", "xvolution_resnet50"), 3.0),
    ("transformers", (SWIN, CONVNEXT, "acmix_swin_tiny", "glnet_stl", "glnet_4g"), 6.0),
    ("ResNet-26 and -38", ("baseline_resnet26", "acmix_resnet26", "acmix_resnet38"), 1.5),
    ("SAN", ("san10", "acmix_san10"), 2.0),
    ("PVT", ("pvt_tiny", "acmix_pvt_tiny"), 1.0),
    ("DeiT", (DEIT, "acmix_deit_tiny"), 1.0),
)
_QUICK = (("nano", ("acmix_resnet_nano", "glnet_nano", "resnet18"), 1.0),)


def plan(options: Options) -> list[Group]:
    """Return a group for each comparison, data type, and compiled or not."""
    return [
        network_group(title, names, options, dtype=dtype, compiled=compiled, weight=weight)
        for dtype in options.dtypes
        for compiled in ((False, True) if options.compile else (False,))
        for title, names, weight in (_QUICK if options.quick else GROUPS)
    ]


if __name__ == "__main__":
    sys.exit(main("backbones", about=__doc__ or "", plan=plan, budget=280, apart=True))
