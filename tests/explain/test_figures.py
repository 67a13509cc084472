from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.explain.figures import (
    Panel,
    column_title,
    confusion_figure,
    curves_figure,
    panels,
    precision_recall_figure,
    save_png,
    to_svg,
)

EPOCHS = [
    {"epoch": e, "lr": 0.1 / e, "train_loss": 2 / e, "val_loss": 3 / e, "val_top1": 1 - 1 / e}
    for e in (1.0, 2.0, 3.0)
]


def words_of(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


DETECTION = {
    "epoch": 1.0,
    "step": 1.0,
    "lr": 0.1,
    "lr_head": 0.5,
    "train_loss": 9.0,
    "train_loss_box": 3.0,
    "val_map": 0.25,
    "val_map50": 0.5,
    "val_boxes": 7.5,
    "val_mask": float("nan"),
    "images_per_second": 0.5,
}


def lines_of(epochs: list[dict[str, float]]) -> list[int]:
    return [len(axes.lines) for axes in curves_figure(panels(epochs), epochs).axes]


def test_charts_are_losses_shares_and_learning_rates_of_any_task() -> None:
    assert panels([DETECTION]) == [
        Panel("Loss", ("train_loss", "train_loss_box")),
        Panel("Metrics", ("val_map", "val_map50")),
        Panel("Learning rate", ("lr", "lr_head")),
    ]


def test_a_column_that_leaves_0_to_1_in_a_later_epoch_is_no_share() -> None:
    later = {"epoch": 2.0, "val_map": 0.5, "val_map50": 1.5}
    assert panels([DETECTION, later])[1] == Panel("Metrics", ("val_map",))


def test_charts_draw_the_columns_that_are_given() -> None:
    assert panels([DETECTION], ["val_map50", "lr", "val_dice"]) == [
        Panel("Metrics", ("val_map50",)),
        Panel("Learning rate", ("lr",)),
    ]


def test_a_chart_has_a_line_for_each_column() -> None:
    assert lines_of(EPOCHS) == [2, 1, 1]
    assert lines_of([DETECTION]) == [2, 2, 2]
    assert lines_of([{"epoch": 1.0, "train_loss": 2.0}]) == [1]


def test_lines_of_one_chart_differ_in_colour_or_dashes() -> None:
    names = ["train_acc", "val_top1", "val_top5", "val_map", "val_dice"]
    epochs = [dict.fromkeys(["epoch", *names], 1.0)]
    (axes,) = curves_figure(panels(epochs), epochs).axes
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(names)


def test_titles_of_columns_are_the_terms_of_the_field() -> None:
    assert column_title("val_top1") == "validation top-1"
    assert column_title("train_loss_box") == "training loss box"


def test_curves_hold_the_values_of_the_epochs() -> None:
    loss = curves_figure(panels(EPOCHS), EPOCHS).axes[0]
    training, validation = (np.asarray(line.get_xydata()) for line in loss.lines)
    np.testing.assert_allclose(training, [(1, 2), (2, 1), (3, 2 / 3)])
    np.testing.assert_allclose(validation, [(1, 3), (2, 1.5), (3, 1)])


def test_curves_are_saved_as_a_picture(tmp_path: Path) -> None:
    with Image.open(
        save_png(curves_figure(panels(EPOCHS), EPOCHS), tmp_path / "curves.png")
    ) as picture:
        assert picture.size == (1650, 495)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_svg_has_the_colours_and_fonts_of_the_page() -> None:
    svg = to_svg(curves_figure(panels(EPOCHS), EPOCHS))
    assert svg.startswith("<svg")
    assert "var(--ink)" in svg
    assert "var(--accent)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert set(re.findall(r"font-family: ([^;\"]*)", svg)) == {"inherit"}
    assert {"Loss", "training", "validation", "100%"} <= set(words_of(svg))


def test_small_matrices_have_names_and_counts() -> None:
    svg = to_svg(confusion_figure([[7, 0], [2, 5]], ["cat & dog", "a name that is far too long"]))
    words = words_of(svg)
    assert {"7", "2", "5", "cat &amp; dog", "a name that is …"} <= set(words)
    assert "0" not in words


def test_large_matrices_have_no_numbers() -> None:
    figure = confusion_figure(np.diag(np.full(31, 77)).tolist(), [f"kind {i}" for i in range(31)])
    assert not figure.axes[0].texts
    assert "kind 1" not in words_of(to_svg(figure))


@pytest.mark.parametrize("classes", [200, 201, 1000])
def test_a_single_confusion_stays_visible_among_many_classes(classes: int) -> None:
    confusion = np.diag(np.full(classes, 9))
    confusion[3, classes - 1] = 1
    (picture,) = confusion_figure(confusion.tolist(), [""] * classes).axes[0].images
    opacity = np.asarray(picture.get_array())[..., 3]
    assert opacity.shape[0] == opacity.shape[1] <= 200
    np.testing.assert_allclose(opacity[3 * len(opacity) // classes, -1], np.sqrt(1 / 10))
    assert np.count_nonzero(opacity) == len(opacity) + 1


def test_a_class_without_images_is_an_empty_row() -> None:
    (picture,) = confusion_figure([[0, 0], [0, 3]], ["none", "some"]).axes[0].images
    assert np.asarray(picture.get_array())[0, :, 3].max() == 0


def test_figures_do_not_import_pyplot_with_its_global_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    assert to_svg(curves_figure(panels(EPOCHS), EPOCHS)).startswith("<svg")
    assert to_svg(confusion_figure([[1]], ["one"])).startswith("<svg")


def test_the_mean_of_the_classes_is_drawn_on_top_whatever_their_names() -> None:
    figure = precision_recall_figure({"all": [1.0, 0.5], "cat": [0.5, 0.0]}, {})
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["all", "cat", "all classes"]
    assert np.asarray(lines[-1].get_ydata()).tolist() == [0.75, 0.25]
    assert len(precision_recall_figure({"cat": [1.0, 0.5]}, {}).axes[0].get_lines()) == 1
