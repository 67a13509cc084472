"""Signs of life while a folder is listed and its images are checked."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convattn.data import BrokenFile, BrokenImageError, ImageSet, find_broken, open_dataset, reread
from tests.data.class_folders import write_broken, write_classes, write_image
from tests.terminals import Terminal


def stderr_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal, in the test itself, as pytest resets it after fixtures."""
    terminal = Terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    return terminal


def slow_pipe(path: Path) -> threading.Thread:
    """Make a named pipe that gives an image after 0.7 seconds."""
    image = write_image(path.with_name("image.png")).read_bytes()
    os.mkfifo(path)

    def write() -> None:
        time.sleep(0.7)
        path.write_bytes(image)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("decode", "title"), [(True, "checking images"), (False, "reading the headers of images")]
)
def test_checking_images_shows_the_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: bool, title: str
) -> None:
    terminal = stderr_terminal(monkeypatch)
    thread = slow_pipe(tmp_path / "0.png")
    paths = [str(tmp_path / "0.png"), str(write_image(tmp_path / "1.png"))]
    assert find_broken(paths, decode=decode) == []
    thread.join(10)
    drawn = terminal.read()
    assert title in drawn
    assert "1 of 2" in drawn


def test_listing_classes_shows_the_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = stderr_terminal(monkeypatch)
    scandir = os.scandir

    def slow(path: str) -> object:
        time.sleep(0.3)
        return scandir(path)

    write_classes(tmp_path, {"blue": 3, "red": 3})
    monkeypatch.setattr(os, "scandir", slow)
    open_dataset(f"folder:{tmp_path}")
    drawn = terminal.read()
    assert "listing classes" in drawn
    assert "1 of 2, " in drawn
    assert "classes/s" in drawn


def test_reading_the_labels_of_a_reader_shows_the_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(list[tuple[Image.Image, int]]):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            time.sleep(0.15 if self.reads <= 5 else 0)  # the labels are read first
            return super().__getitem__(index)

    terminal = stderr_terminal(monkeypatch)
    images = Slow((Image.new("L", (4, 4)), number) for number in range(5))
    monkeypatch.setattr("convattn.data.timm_reader.create_dataset", lambda *_, **__: images)
    assert open_dataset("timm:hfds/numbers").num_classes == 5
    drawn = terminal.read()
    assert "reading labels" in drawn
    assert "4 of 5" in drawn


def test_quick_checks_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr_terminal(monkeypatch)
    open_dataset(f"folder:{write_classes(tmp_path, {'blue': 3, 'red': 3})}")
    assert terminal.read() == ""


def test_broken_images_are_named_in_order(tmp_path: Path) -> None:
    paths = [str(write_image(tmp_path / f"{n}.png")) for n in range(4)]
    for number in (3, 1):
        write_broken(Path(paths[number]))
    assert [file.path for file in find_broken(paths)] == [paths[1], paths[3]]


def test_a_target_that_cannot_be_read_is_named() -> None:
    class Masks(ImageSet):
        def __len__(self) -> int:
            return 3

        def image(self, index: int) -> Image.Image:
            return Image.new("L", (4, 4))

        def target(self, index: int) -> int:
            if index == 1:
                raise BrokenImageError("mask1.png", "it is cut off")
            return index

    assert reread(Masks(), [0, 1]) == [BrokenFile("mask1.png", "it is cut off")]
