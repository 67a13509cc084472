"""The report of a training run: one page that opens without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor, nn

from convattn.explain.run import read_run

ImageSource = Callable[[int], Image.Image]
Preprocess = Callable[[Image.Image], Tensor]


def write_report(
    run_dir: str | Path,
    *,
    model: nn.Module | None = None,
    image: ImageSource | None = None,
    preprocess: Preprocess | None = None,
    max_mistakes: int = 24,
    slot_images: int = 6,
) -> Path:
    """Write ``report.html`` and ``curves.png`` into a run folder.

    The page is one file without any outside reference. What the folder does not hold yet is
    left out: after an interrupted training the page shows the curves and the configuration.

    Args:
        run_dir: folder with any of ``metrics.csv``, ``evaluation.json``, ``predictions.csv``,
            ``config.yaml``, ``environment.json`` and ``broken_images.txt`` (a path per line).
        model: the trained network, for slot maps; used in evaluation mode and left as it was.
        image: gives the picture of a validation image from the ``index`` column of
            ``predictions.csv``, as it is on disk; without it mistakes are listed in words.
        preprocess: turns such a picture into the network's input (C, H, W), the evaluation
            transform; slot maps need ``model``, ``image`` and ``preprocess``.
        max_mistakes: how many wrong examples to show, the most confident ones.
        slot_images: for how many images to show slot maps.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: ``run_dir`` is not a folder.
    """
    run = read_run(run_dir)
    pages = Environment(
        loader=PackageLoader("convattn.explain"), autoescape=True, undefined=StrictUndefined
    )
    page = Path(run_dir) / "report.html"
    page.write_text(pages.get_template("report.html").render(run=run), encoding="utf-8")
    return page
