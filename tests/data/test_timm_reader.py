from __future__ import annotations

import struct
import sys
import unicodedata
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from convattn.data import open_dataset
from tests.data.class_folders import write_classes


def write_mnist(root: Path) -> None:
    """Write MNIST's four files with a few blank images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 4)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = np.full((count, 28, 28), 9, dtype=np.uint8)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def test_torchvisions_data_sets_open_by_name(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    source = open_dataset("timm:torch/mnist", root=tmp_path)
    assert (len(source.train), len(source.val)) == (12, 4)
    assert source.num_classes == 10
    assert (source.in_chans, source.hflip) == (1, False)
    assert source.train.label(11) == 1
    assert source.val.image(0).size == (28, 28)


def test_timms_folder_reader_opens_a_root(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"red": 3, "blue": 3})
    write_classes(tmp_path / "validation", {"red": 1, "blue": 1})
    source = open_dataset("timm:", root=tmp_path)
    assert source.class_names == ("blue", "red")
    assert (len(source.train), len(source.val)) == (6, 2)
    assert source.train.path(0).endswith("blue/0.png")
    assert [source.val.label(i) for i in range(2)] == [0, 1]


@pytest.mark.parametrize("name", ["timm:", "timm:torch/image_folder"])
@pytest.mark.parametrize(
    ("parts", "missing"), [(("Training", "Testing"), "train"), (("train", "dev"), "validation")]
)
def test_the_error_names_a_part_that_timm_does_not_find(
    tmp_path: Path, name: str, parts: tuple[str, str], missing: str
) -> None:
    for part in parts:
        write_classes(tmp_path / part, {"blue": 2, "red": 2})
    with pytest.raises(ValueError, match=rf"no part '{missing}' in {tmp_path}, and reads all"):
        open_dataset(name, root=tmp_path)
    source = open_dataset(name, root=tmp_path, train_split=parts[0], val_split=parts[1])
    assert (len(source.train), len(source.val)) == (4, 4)


def test_a_held_out_part_without_some_classes_keeps_the_numbers(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"ant": 1, "bee": 1, "Größe": 1})
    write_classes(tmp_path / "validation", {"bee": 1, unicodedata.normalize("NFD", "Größe"): 1})
    source = open_dataset("timm:", root=tmp_path)
    assert source.class_names == ("ant", "bee", "Größe")
    assert [source.val.label(i) for i in range(2)] == [1, 2]


def test_a_held_out_class_that_is_not_in_training_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"blue": 1, "red": 1})
    write_classes(tmp_path / "validation", {"blu": 1, "red": 1})
    with pytest.raises(ValueError, match=r"not in training: 'blu'; did you mean 'blue'\?"):
        open_dataset("timm:", root=tmp_path)


def test_two_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        for part in ("train", "validation"):
            write_classes(tmp_path / part, {unicodedata.normalize(form, "Größe"): 1, "klein": 1})
    source = open_dataset("timm:", root=tmp_path)
    assert source.class_names == ("Größe", "klein")
    assert sorted(source.train.label(i) for i in range(3)) == [0, 0, 1]


def test_two_classes_may_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cranes(list[tuple[Image.Image, int]]):
        classes = (("crane",), ("tench",), ("crane",))

    images = Cranes((Image.new("L", (4, 4)), number) for number in (0, 1, 2))
    monkeypatch.setattr("convattn.data.timm_reader.create_dataset", lambda *_, **__: images)
    source = open_dataset("timm:hfds/cranes")
    assert source.num_classes == 3
    assert [source.val.label(i) for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("numbers", "labels"), [({"ant": 1, "bee": 2}, (1, 2)), ({"bee": 7, "ant": 3}, (3, 7))]
)
def test_classes_may_be_numbered_with_gaps(
    monkeypatch: pytest.MonkeyPatch, numbers: dict[str, int], labels: tuple[int, int]
) -> None:
    class Insects(list[tuple[Image.Image, int]]):
        class_to_idx = numbers

    images = Insects((Image.new("L", (4, 4)), number) for number in labels)
    monkeypatch.setattr("convattn.data.timm_reader.create_dataset", lambda *_, **__: images)
    source = open_dataset("timm:hfds/insects")
    assert source.class_names == ("ant", "bee")
    assert [source.train.label(i) for i in range(2)] == [0, 1]


def test_a_number_that_the_data_set_does_not_name_is_no_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Insects(list[tuple[Image.Image, int]]):
        class_to_idx = MappingProxyType({"ant": 1, "bee": 2})

    images = Insects((Image.new("L", (4, 4)), number) for number in (0, 1, 2))
    monkeypatch.setattr("convattn.data.timm_reader.create_dataset", lambda *_, **__: images)
    source = open_dataset("timm:hfds/insects")
    with pytest.raises(ValueError, match=r"number 0 has the class 0, .* names only 1, 2"):
        source.train.label(0)


def test_nothing_is_downloaded_without_the_option(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"add download=true to download it, or root=PATH"):
        open_dataset("timm:torch/cifar10", root=tmp_path)


def test_the_error_on_an_unknown_name_suggests_a_similar_one() -> None:
    with pytest.raises(
        ValueError, match=r"'cifar11' that timm opens; did you mean 'torch/cifar10'\?"
    ):
        open_dataset("timm:torch/cifar11")


@pytest.mark.parametrize("name", ["wds/shards", "tfds/mnist", "hfids/x/y"])
def test_the_error_on_a_stream_names_alternatives(name: str) -> None:
    with pytest.raises(ValueError, match="is a stream without random access"):
        open_dataset(f"timm:{name}")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"timm:hfds/a/b needs datasets.*pip install datasets"):
        open_dataset("timm:hfds/a/b")
