"""The figures of detectors and segmenters beside those of the papers, for docs/models.md."""

from __future__ import annotations

from pathlib import Path

from papers.tables import markdown_table, read_rows

_HERE = Path(__file__).parent
_DETECTION = """\
Multiply-adds of one image of 800 x 1280 pixels with 80 classes, counted as in the paper's table:
backbone, pyramid and heads. A head of boxes computes 1,000 regions and a head of masks 100, in each
stage of a cascade. Pooling of regions and suppression by IoU are not counted. Rows without a figure
of the paper are ours.

All rows are below the paper's, those of RetinaNet by 1.5 % to 4.4 %. The counter of the published
detectors also counts norms, activations and biases, which are 0.2 G only. With 91 classes in place
of 80 the head of RetinaNet would have 4.9 G more, half of the difference or more. For SAN, ours are
already below the paper's on ImageNet, see "Figures that differ". Where windows do not divide a map,
Swin projects the padding too, our Swin-ACmix does not. We know no other cause.
"""
_SEGMENTATION = """\
Multiply-adds of one image of 512 x 2048 pixels with 150 classes, without the auxiliary head of
UperNet, which only the training uses; the parameters include it. The multiply-adds of
`acmix_swin_*` are those of 224 x 224 pixels times the ratio of the areas. Rows without a figure of
the paper are ours. The mean IoU on ADE20K is the paper's; we have not trained on ADE20K.
"""


def detection_section() -> str:
    """Return the text and the table of the detectors."""
    head = ("method", "backbone", "paper's name", "multiply-adds", "paper", "difference")
    lines = [
        (
            f"`{row['method']}`",
            f"`{row['backbone']}`",
            row["model"],
            f"{row['counted_g']} G",
            *_compared(row["counted_g"], row["paper_g"]),
        )
        for row in read_rows(_HERE / "detection.csv")
    ]
    source = "Pan et al. CVPR 2022 (arXiv 2111.14556), COCO results."
    return f"{source} {_DETECTION}\n{markdown_table(head, lines)}"


def segmentation_section() -> str:
    """Return the text and the table of the segmenters."""
    head = (
        *("method", "backbone", "paper's name", "parameters", "paper", "multiply-adds", "paper"),
        *("difference", "mean IoU"),
    )
    lines = [
        (
            f"`{row['method']}`",
            f"`{row['backbone']}`",
            row["model"],
            f"{row['params_m']} M",
            f"{row['paper_params_m']} M" if row["paper_params_m"] else "",
            f"{row['counted_g']} G",
            *_compared(row["counted_g"], row["paper_g"]),
            row["paper_miou"],
        )
        for row in read_rows(_HERE / "segmentation.csv")
    ]
    source = "Pan et al. CVPR 2022 (arXiv 2111.14556), ADE20K results."
    return f"{source} {_SEGMENTATION}\n{markdown_table(head, lines)}"


def _compared(counted: str, paper: str) -> tuple[str, str]:
    """Return the paper's figure and the difference from it; "ours" without a paper's figure."""
    if not paper:
        return "ours", ""
    return f"{paper} G", f"{float(counted) / float(paper) - 1:+.1%}"
