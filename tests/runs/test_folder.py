from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from convattn.data import BrokenFile
from convattn.runs.files import DamagedFileError
from convattn.runs.folder import RunFolder
from convattn.runs.weights import save_weights
from tests.runs.disk import largest_file
from tests.runs.test_card import CARD

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
COLUMNS = ("epoch", "loss")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create(tmp_path, "first")


def create(runs: Path, name: str | None) -> RunFolder:
    return RunFolder.create(runs, name, "timm/glnet_nano", "folder:data/my pets")


def evaluate(run: RunFolder, **values: Any) -> None:
    run.write_evaluation(values, ["path"], [{"path": NOT_UTF8}])


def test_a_new_run_has_the_next_free_number(tmp_path: Path) -> None:
    runs = tmp_path / "a" / "runs"
    names = [create(runs, None).path.name for _ in range(3)]
    assert names == [f"glnet_nano-my_pets-{number}" for number in (1, 2, 3)]
    assert (runs / names[0] / "checkpoints").is_dir()


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [
        threading.Thread(target=lambda: made.append(create(tmp_path / "a" / "b", None).path))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


def test_a_name_may_have_folders(tmp_path: Path) -> None:
    assert create(tmp_path, "pets/first").path == tmp_path / "pets" / "first"


def test_a_name_that_is_taken_advises_to_go_on(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(FileExistsError, match=r"there is a run in .*first already; .*--resume"):
        create(tmp_path, "first")
    assert run.path.is_dir()


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "a/../../evil", "/tmp/evil", "a\0b"])
def test_a_name_that_leads_out_of_the_runs_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must name a folder inside runs, such as name=first"):
        create(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runs", ["/dev/null", "/dev/null/runs"])
def test_runs_that_are_no_folder_are_named(runs: str) -> None:
    for name in ("first", None):
        with pytest.raises(NotADirectoryError, match=r"/dev/null.* is not a folder; .*runs=FOLDER"):
            create(Path(runs), name)


def test_runs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    for error in (PermissionError(13, "Permission denied", "x"), OSError(30, "Read-only", "x")):
        with (
            mock.patch("pathlib.Path.mkdir", side_effect=error),
            pytest.raises(type(error), match=r"cannot make the run folder .*first: .*runs=FOLDER"),
        ):
            create(tmp_path, "first")


def test_a_run_that_fails_at_its_start_leaves_nothing(tmp_path: Path) -> None:
    run = create(tmp_path / "a" / "runs", "pets/first")
    run.write_config({"epochs": 3})
    run.write_environment()
    run.keep_metrics(COLUMNS, 0)
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / "events").touch()
    run.discard()
    assert list(tmp_path.iterdir()) == []
    create(tmp_path / "a" / "runs", "pets/first")


@pytest.mark.parametrize("file", ["notes.txt", "checkpoints/last.ckpt"])
def test_a_discarded_run_keeps_files_of_others_and_checkpoints(run: RunFolder, file: str) -> None:
    (run.path / file).write_text("precious")
    run.discard()
    assert (run.path / file).read_text() == "precious"


def test_a_run_that_goes_on_is_never_discarded(run: RunFolder) -> None:
    run.write_config({"epochs": 3})
    RunFolder(run.path).discard()
    assert run.read_config() == {"epochs": 3}


def test_the_configuration_survives(run: RunFolder) -> None:
    values = {
        "data": f"folder:{NOT_UTF8}",
        "lr": 1e-05,
        "model": "猫",
        "scale": [0.5, 1],
        "x": None,
    }
    run.write_config(values)
    assert run.read_config() == values
    assert "猫" in (run.path / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "a: [1", "epochs", "\x00: 1", "1: 2", "a: 2026-13-45", "a: " + "[" * 9999],
)
def test_a_damaged_configuration_is_named(run: RunFolder, text: str) -> None:
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(DamagedFileError, match=r"first/config\.yaml is damaged: .*; restore"):
        run.read_config()


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml: it is not a run folder"):
        RunFolder(tmp_path).read_config()


def test_each_start_is_added_to_the_environment(run: RunFolder) -> None:
    with mock.patch("sys.argv", ["/bin/convattn", "train", f"data=folder:{NOT_UTF8}"]):
        assert run.write_environment() == run.write_environment() == []
    found = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    assert [start["command"] for start in found["starts"]] == [
        f"convattn train data=folder:{NOT_UTF8}"
    ] * 2


def test_a_damaged_environment_is_set_aside(run: RunFolder) -> None:
    path = run.path / "environment.json"
    path.write_text('{"starts": [')
    (note,) = run.write_environment()
    assert "environment.json is damaged" in note
    assert "the damaged one is renamed to environment.json.damaged-1" in note
    assert (run.path / "environment.json.damaged-1").read_text() == '{"starts": ['
    assert len(json.loads(path.read_text())["starts"]) == 1


def test_metrics_of_epochs_that_are_repeated_go(run: RunFolder) -> None:
    assert run.read_metrics() == []
    assert run.keep_metrics(COLUMNS, 0) == []
    for epoch in (1, 2, 3):
        run.add_metrics(COLUMNS, {"epoch": epoch, "loss": 1 / 3})
    assert run.keep_metrics(COLUMNS, 2) == []
    assert run.read_metrics() == [{"epoch": f"{n}", "loss": "0.333333"} for n in (1, 2)]


def test_columns_of_another_version_are_kept(run: RunFolder) -> None:
    (run.path / "metrics.csv").write_text("epoch,old\r\n1,7\r\n")
    run.keep_metrics(COLUMNS, 1)
    run.add_metrics(COLUMNS, {"epoch": 2, "loss": 0.5})
    first, second = run.read_metrics()
    assert (first["old"], first["loss"], second["old"], second["loss"]) == ("7", "", "", "0.5")


@pytest.mark.parametrize(
    "text", ["epoxh,loss\r\n1,2\r\n", "epoch,loss\r\nx,2\r\n", "epoch,loss\r\n1\r\n", ""]
)
def test_damaged_metrics_are_set_aside(run: RunFolder, text: str) -> None:
    (run.path / "metrics.csv").write_bytes(text.encode())
    (note,) = run.keep_metrics(COLUMNS, 3)
    assert "metrics.csv is damaged" in note
    assert (run.path / "metrics.csv.damaged-1").read_bytes() == text.encode()
    run.add_metrics(COLUMNS, {"epoch": 4, "loss": 1.0})
    assert run.read_metrics() == [{"epoch": "4", "loss": "1.0"}]


def test_metrics_that_are_damaged_during_the_training_do_not_end_it(run: RunFolder) -> None:
    run.keep_metrics(COLUMNS, 0)
    (run.path / "metrics.csv").write_bytes(b"epoch,loss\r\n1\r\n")
    (note,) = run.add_metrics(COLUMNS, {"epoch": 2, "loss": 1.0})
    assert "row 2 has 1 cells" in note
    assert run.add_metrics(COLUMNS, {"epoch": 3, "loss": 1.0}) == []
    assert [row["epoch"] for row in run.read_metrics()] == ["2", "3"]


def test_broken_images_keep_their_bytes_and_have_a_line_each(run: RunFolder) -> None:
    run.write_broken([])
    assert not (run.path / "broken_images.txt").exists()
    run.write_broken([BrokenFile(name, "cut off") for name in ("b\nc", NOT_UTF8, "a", "a")])
    assert (run.path / "broken_images.txt").read_bytes() == b"a\nb\\nc\ncaf\xe9.png\n"


def test_a_run_is_evaluated_when_all_files_of_the_evaluation_are_there(run: RunFolder) -> None:
    assert not run.is_evaluated
    evaluate(run, top1=0.5)
    assert run.is_evaluated
    assert b"caf\xe9.png" in (run.path / "predictions.csv").read_bytes()
    (run.path / "predictions.csv").unlink()
    assert not run.is_evaluated


def test_an_evaluation_of_an_earlier_best_epoch_does_not_count(run: RunFolder) -> None:
    save_weights({}, CARD, run.best)
    evaluate(run, epoch=CARD.epoch)
    assert run.is_evaluated
    evaluate(run, epoch=CARD.epoch - 1)
    assert not run.is_evaluated


def test_an_evaluation_that_cannot_be_written_leaves_the_one_before(run: RunFolder) -> None:
    save_weights({}, CARD, run.best)
    evaluate(run, top1=0.5)
    rows = [{"path": "x" * 5000}]
    with largest_file(1000), pytest.raises(OSError, match=r"too large: .*/predictions\.csv'$"):
        run.write_evaluation({"top1": 0.75}, ["path"], rows)
    assert run.is_evaluated
    assert json.loads((run.path / "evaluation.json").read_text()) == {"top1": 0.5}


def test_an_evaluation_that_was_cut_off_does_not_count(run: RunFolder) -> None:
    save_weights({}, CARD, run.best)
    evaluate(run, top1=0.5)
    (run.path / "evaluation.json").write_text("{")
    assert not run.is_evaluated


def test_temporary_files_of_a_killed_process_are_removed(run: RunFolder) -> None:
    process = os.fork()
    if process == 0:
        with mock.patch("os.replace", side_effect=lambda *_: os._exit(0)):  # as if it were killed
            save_weights({}, CARD, run.best)
    os.waitpid(process, 0)
    assert len(list(run.checkpoints.iterdir())) == 1
    run.remove_temporary()
    assert list(run.checkpoints.iterdir()) == []


def test_a_name_made_of_long_names_fits_the_file_system(tmp_path: Path) -> None:
    for number in (1, 2):
        run = RunFolder.create(tmp_path, None, "glnet_nano", "folder:/data/" + "猫" * 100)
        assert run.path.name.startswith("glnet_nano-猫")
        assert run.path.name.endswith(f"猫-{number}")
        assert len(os.fsencode(run.path.name)) <= 255


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + "/b", "b/" + "猫" * 100])
def test_a_name_that_is_too_long_is_named_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"cannot make the run folder .*too long.*name=NAME"):
        create(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "glnet_nano-my_pets-1").touch()
    (tmp_path / "glnet_nano-my_pets-2").symlink_to("nowhere")
    assert create(tmp_path, None).path.name == "glnet_nano-my_pets-3"
    with pytest.raises(NotADirectoryError, match=r"-1 is not a folder; .*name=NAME"):
        create(tmp_path, "glnet_nano-my_pets-1")


def test_a_folder_that_cannot_be_read_can_be_discarded(run: RunFolder) -> None:
    with mock.patch("os.scandir", side_effect=OSError(5, "Input/output error")):
        run.discard()


@pytest.mark.parametrize("words", [[], ["/bin/convattn", "train"]])
def test_the_command_of_a_start_is_written(
    run: RunFolder, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", words)
    run.write_environment()
    (start,) = json.loads((run.path / "environment.json").read_text())["starts"]
    assert start["command"] == ("convattn train" if words else "")


def test_an_evaluation_of_earlier_predictions_does_not_stay(run: RunFolder) -> None:
    save_weights({}, CARD, run.best)
    evaluate(run, top1=0.5)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "evaluation.json":
            raise OSError(5, "Input/output error")
        real(source, target)

    with mock.patch("os.replace", replace), pytest.raises(OSError, match="Input/output"):
        evaluate(run, top1=0.75)
    assert not run.is_evaluated
    assert not (run.path / "evaluation.json").exists()
