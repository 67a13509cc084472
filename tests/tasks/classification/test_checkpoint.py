from __future__ import annotations

import os
import pickle
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convattn.data import Preprocess
from convattn.models import create_model
from convattn.runs.card import ModelCard
from convattn.runs.weights import find_checkpoint, save_weights
from convattn.tasks.classification import load_checkpoint

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


def test_an_older_cards_names_are_read_in_one_form() -> None:
    card = replace(CARD, class_names=("Größe", "klein"))
    older = card.to_json().replace("Größe", unicodedata.normalize("NFD", "Größe"))
    assert older != card.to_json()
    assert ModelCard.from_json(older) == card


def test_writing_leaves_no_other_files_and_readable_ones(tmp_path: Path) -> None:
    save_weights(make_model().state_dict(), CARD, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(make_model().state_dict(), CARD, path)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_weights(make_model().state_dict(), CARD, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


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
    with pytest.raises(ValueError, match="nothing says of which model and classes"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    other = create_model("test_vit", img_size=32, num_classes=3, in_chans=1)
    save_weights(other.state_dict(), CARD, path)
    with pytest.raises(ValueError, match="do not fit test_vit; they were written by convattn"):
        load_checkpoint(path)
