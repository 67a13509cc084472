from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from convattn.data import Preprocess
from convattn.models import create_model
from convattn.runs.card import ModelCard
from convattn.runs.files import DamagedFileError
from convattn.runs.weights import (
    find_checkpoint,
    read_card,
    read_ckpt,
    read_weights,
    save_weights,
    write_ckpt,
)
from convattn.tasks.classification import load_checkpoint
from tests.runs.disk import largest_file, umask

CARD = ModelCard(
    model="test_vit",
    model_args={"img_size": 32},
    class_names=("Katze 猫", "dog"),
    preprocess=Preprocess(input_size=(1, 32, 32), mean=(0.5,), std=(0.2,), crop_pct=0.9),
    data="folder:pets",
    data_options={"val_fraction": 0.3},
    epoch=4,
    metrics={"val_top1": 0.5},
)


def progress() -> dict[str, Any]:
    return {"convattn": {"card": CARD.to_json(), "epochs_done": 4, "batches_done": 0}}


def write(path: Path, last: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
    """Write a small checkpoint whose weight ``b`` ends with ``last``."""
    path.parent.mkdir(exist_ok=True)
    weights = {"a": torch.arange(300.0), "b": torch.tensor([0, 0, 0, last], dtype=dtype)}
    if path.suffix == ".ckpt":
        state = {f"model.{name}": value for name, value in weights.items()}
        write_ckpt({**progress(), "state_dict": state}, path)
    else:
        save_weights(weights, CARD, path)


def make_model() -> torch.nn.Module:
    return create_model("test_vit", img_size=32, num_classes=2, in_chans=1).eval()


def test_weights_and_card_survive_the_file(tmp_path: Path) -> None:
    model = make_model()
    save_weights(model.state_dict(), CARD, tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.card == CARD
    assert not loaded.model.training
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(loaded.model(image), model(image), rtol=0, atol=0)


def test_writing_leaves_no_other_files_and_readable_ones(tmp_path: Path) -> None:
    save_weights(make_model().state_dict(), CARD, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("size", [0, 1000, 1500])
def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    tmp_path: Path, suffix: str, size: int
) -> None:
    path = tmp_path / f"best.{suffix}"
    write(path)
    before = path.read_bytes()
    with (
        largest_file(size),
        pytest.raises(
            OSError,
            match=rf"File too large: .*best\.{suffix}|cannot write .*best\.{suffix}.*too large",
        ),
    ):
        write(path, 1.0)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_the_mode_of_a_checkpoint_follows_the_umask(tmp_path: Path, suffix: str, mask: int) -> None:
    path = tmp_path / f"best.{suffix}"
    with umask(mask):
        write(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_flipped_bytes_are_found_or_do_no_harm(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"best.{suffix}"
    write(path)
    whole, (weights, card) = path.read_bytes(), read_weights(path)
    size = len(whole)
    found = 0
    for place in (*range(0, size, 7), *range(size - 100, size)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            again, same = read_weights(path)
        except ValueError:
            found += 1
        else:
            assert same == card
            assert again.keys() == weights.keys()
            assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert found > size / 30


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_file_that_is_cut_off_is_called_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"last.{suffix}"
    write(path)
    whole = path.read_bytes()
    for size in (0, 2, 7, 9, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError, match=rf"last\.{suffix} is damaged: .*; restore it"):
            read_weights(path)


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("last.ckpt", "best.ckpt"),
        ("best.ckpt", "last.ckpt"),
        ("last.safetensors", "best.safetensors"),
        ("best.safetensors", "best.ckpt"),
        ("best.safetensors", "last.safetensors"),
    ],
)
def test_a_damaged_checkpoint_names_a_whole_one(tmp_path: Path, damaged: str, whole: str) -> None:
    for name in (damaged, whole):
        write(tmp_path / name)
    os.truncate(tmp_path / damaged, 50)
    with pytest.raises(DamagedFileError, match=rf"{whole} is whole and can be given"):
        read_weights(tmp_path / damaged)
    os.truncate(tmp_path / whole, 50)
    with pytest.raises(DamagedFileError) as error:
        read_weights(tmp_path / damaged)
    assert whole not in str(error.value)


def test_a_checkpoint_of_zeros_is_refused_and_names_a_whole_one(tmp_path: Path) -> None:
    write(tmp_path / "best.ckpt")
    (tmp_path / "last.ckpt").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint.*best\.ckpt is whole"):
        read_ckpt(tmp_path / "last.ckpt")


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, suffix: str, value: float, dtype: torch.dtype
) -> None:
    path = tmp_path / f"best.{suffix}"
    write(path, value, dtype)
    with pytest.raises(ValueError, match=r"its weight b holds NaN or infinity.* a lower lr"):
        read_weights(path)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.zeros(0, 4),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.complex64),
        torch.arange(6.0).view(2, 3).t(),
        torch.zeros(3, requires_grad=True),
    ],
)
def test_every_kind_of_tensor_survives(tmp_path: Path, value: torch.Tensor) -> None:
    save_weights({"a": value}, CARD, tmp_path / "a.safetensors")
    weights, card = read_weights(tmp_path / "a.safetensors")
    assert card == CARD
    assert weights["a"].dtype == value.dtype
    assert weights["a"].tolist() == value.tolist() if value.numel() else value.shape == (0, 4)


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    weights = {"a": tied, "b": tied, "c": tied[2:4], "d": tied.view(2, 3)}
    save_weights(weights, CARD, tmp_path / "a.safetensors")
    found, _ = read_weights(tmp_path / "a.safetensors")
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in weights.items()}


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_path_that_is_not_utf8_works(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    path = folder / os.fsdecode(b"caf\xe9." + suffix.encode())
    write(path)
    weights, card = read_weights(path)
    assert card == CARD
    assert weights["b"].tolist() == [0.0] * 4
    assert list(folder.iterdir()) == [path]


def test_the_ema_weights_of_a_ckpt_are_preferred(tmp_path: Path) -> None:
    state = {"model.a": torch.zeros(2), "ema.module.a": torch.ones(2), "ema.n": torch.zeros(1)}
    write_ckpt({**progress(), "state_dict": state}, tmp_path / "a.ckpt")
    weights, _ = read_weights(tmp_path / "a.ckpt")
    assert {name: value.tolist() for name, value in weights.items()} == {"a": [1.0, 1.0]}


def test_a_ckpt_keeps_all_that_torch_reads_safely(tmp_path: Path) -> None:
    content = {**progress(), "loops": {"a": [1, (2, None)], "b": torch.Size([2])}, "x": -0.0}
    write_ckpt(content, tmp_path / "a.ckpt")
    assert read_ckpt(tmp_path / "a.ckpt") == content
    assert torch.load(tmp_path / "a.ckpt", weights_only=True) == content


def test_a_ckpt_of_lightning_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({**progress(), "state_dict": {"model.a": torch.arange(3000.0)}}, path)
    assert read_weights(path)[0]["a"].tolist() == list(range(3000))
    whole = path.read_bytes()
    for place in range(5000, 9000, 501):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedFileError, match=r"last\.ckpt is damaged: the checksum of"):
            read_weights(path)


def test_a_ckpt_with_a_checksum_is_a_zip_archive_that_torch_reads(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"convattn crc32:")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=True)["state_dict"]


@pytest.mark.parametrize("key", ["card", "epochs_done", "batches_done"])
def test_a_ckpt_without_its_progress_is_refused(tmp_path: Path, key: str) -> None:
    content = progress()
    del content["convattn"][key]
    write_ckpt(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt has no \w+ in 'convattn\.{key}'"):
        read_ckpt(tmp_path / "a.ckpt")


@pytest.mark.parametrize("state", [None, [], {"a": 3}])
def test_a_ckpt_without_weights_is_refused(tmp_path: Path, state: object) -> None:
    write_ckpt({**progress(), "state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt has no weights in 'state_dict'"):
        read_weights(tmp_path / "a.ckpt")


def test_a_card_is_read_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    assert read_card(tmp_path / "a.safetensors") == CARD


def test_a_missing_best_is_replaced_by_the_same_epoch_in_the_other_form(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints" / "best.ckpt")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "best.ckpt"


def test_a_missing_last_names_the_best(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoints/last\.ckpt.*best\.ckpt is whole"):
        find_checkpoint(tmp_path, "last.ckpt")


def test_a_run_folder_stands_for_its_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save_weights(make_model().state_dict(), CARD, folder / "best.safetensors")
    assert find_checkpoint(tmp_path) == folder / "best.safetensors"
    assert find_checkpoint(folder) == folder / "best.safetensors"
    assert load_checkpoint(tmp_path).card == CARD


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint or run folder .*gone"):
        load_checkpoint(tmp_path / "gone")


def test_a_folder_without_checkpoints_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no checkpoints/best\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "a.ckpt", "a.safetensors"])
def test_another_file_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("hello")
    with pytest.raises(ValueError, match=rf"{name} is not a checkpoint: give a run folder"):
        load_checkpoint(path)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_someone_elses_lightning_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is not a checkpoint"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_safetensors_without_a_card_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds weights, but no card that names its model"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    other = create_model("test_vit", img_size=32, num_classes=3, in_chans=1)
    save_weights(other.state_dict(), CARD, path)
    with pytest.raises(ValueError, match="do not fit test_vit; they were written by convattn"):
        load_checkpoint(path)
