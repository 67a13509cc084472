from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convattn.training.config import RunConfig, setting
from convattn.training.settings import load_config, parse_overrides


class Config(RunConfig):
    """A task with texts of several types."""

    model: str = setting("resnet18", "model")
    data: str = setting("digits", "data")


# every setting that accepts texts
TEXTS = (
    "model", "init", "data", "root", "train_split", "val_split", "opt", "accelerator",
    "strategy", "runs", "name",
)  # fmt: skip
TYPED = ("123", "yes", "no", "on", "2026-11-29", "12:30", "1e5", "010", "1_000", "0x1f", ".5", "+5")


def from_words(folder: Path, *words: str) -> Config:
    return load_config(Config, folder, None, parse_overrides(words, Config))


def from_file(folder: Path, text: str) -> Config:
    (folder / "mine.yaml").write_text(text)
    return load_config(Config, folder, "mine")


@pytest.mark.parametrize("text", TYPED)
@pytest.mark.parametrize("key", TEXTS)
def test_a_text_setting_keeps_the_text_that_was_typed(tmp_path: Path, key: str, text: str) -> None:
    assert getattr(from_words(tmp_path, f"{key}={text}"), key) == text
    assert getattr(from_file(tmp_path, f"{key}: {text}\n"), key) == text


@pytest.mark.parametrize("precision", ["32", "64", "16-mixed", "auto"])
def test_a_precision_is_a_text(tmp_path: Path, precision: str) -> None:
    assert from_words(tmp_path, f"precision={precision}").precision == precision
    assert from_file(tmp_path, f"precision: {precision}\n").precision == precision
    assert from_words(tmp_path, f"precision='{precision}'").precision == precision
    assert from_file(tmp_path, f"precision: '{precision}'\n").precision == precision


@pytest.mark.parametrize("text", ["a: b", "a #b", "[x", "{a", "*x", "!x", "%x", "- x", "a=b"])
def test_a_typed_text_need_not_be_yaml(tmp_path: Path, text: str) -> None:
    assert from_words(tmp_path, f"name={text}").name == text


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_null_resets_an_optional_text(tmp_path: Path, text: str) -> None:
    assert from_words(tmp_path, f"name={text}").name is None
    assert from_file(tmp_path, f"name: {text}\n").name is None
    assert from_words(tmp_path, "model=null").model == "null"
    assert from_words(tmp_path, "name='null'").name == "null"


@pytest.mark.parametrize(
    ("text", "devices"), [("2", 2), ("-1", -1), ("0,1", "0,1"), ("1,", "1,"), ("auto", "auto")]
)
def test_devices_are_a_number_or_a_text(tmp_path: Path, text: str, devices: int | str) -> None:
    assert from_words(tmp_path, f"devices={text}").devices == devices
    assert from_file(tmp_path, f"devices: {text}\n").devices == devices


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-2", -2), (".5", 0.5), ("5.", 5.0), ("true", True), ("relu", "relu"),
        ("[1e-3, 2]", [0.001, 2]), ("{a: 1e3}", {"a": 1000.0}), ("12:30", "12:30"),
        ("2026-11-29", "2026-11-29"), ("null", None), ("'1'", "1"),
    ],
)  # fmt: skip
def test_an_argument_of_the_model_has_the_type_that_yaml_gives(
    tmp_path: Path, text: str, value: Any
) -> None:
    assert from_words(tmp_path, f"model_args.x={text}").model_args["x"] == value
    assert from_file(tmp_path, f"model_args: {{x: {text}}}\n").model_args["x"] == value


@pytest.mark.parametrize("text", ["1:30", "0b11", "1.5"])
def test_a_number_that_yaml_alone_understands_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=f"epochs={text}: must be a valid integer"):
        from_words(tmp_path, f"epochs={text}")


def test_a_leading_zero_does_not_make_a_number_octal(tmp_path: Path) -> None:
    assert from_words(tmp_path, "epochs=010").epochs == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epochs=1", "epochs.x=3"], "'epochs.x=3': epochs has no entries; write epochs=VALUE"),
        (["name.x=3"], "'name.x=3': name has no entries; write name=VALUE"),
        (["model_args=3", "model_args.x=3"], "'model_args.x=3': model_args=3 was given too"),
    ],
)
def test_an_entry_of_a_setting_that_is_no_mapping_is_an_error(
    words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_overrides(words, Config)


def test_an_entry_of_an_unknown_setting_is_an_unknown_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown setting 'model_arg'; did you mean 'model_args'"):
        from_words(tmp_path, "model_arg.x=3")


def test_python_gives_integers_and_paths_for_texts(tmp_path: Path) -> None:
    values = {"precision": 32, "name": 123, "runs": tmp_path, "devices": 2}
    config = load_config(Config, tmp_path, None, values)
    assert (config.precision, config.name, config.runs) == ("32", "123", str(tmp_path))
    assert config.devices == 2


def test_a_list_for_a_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name=\[a\]: must be a valid string"):
        from_file(tmp_path, "name: [a]\n")


def test_a_message_shows_a_value_with_line_breaks_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision=a\\nb\\x1b\[31m: must be 'auto'"):
        from_words(tmp_path, "precision=a\nb\x1b[31m")
