from __future__ import annotations

import re
import subprocess
import sys

import pytest

import convattn
from convattn.cli import main
from tests.cli.command import environment


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command line with a mistake and return its message."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: convattn" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["train", "eval", "predict", "report", "data", "models", "doctor"]
)
def test_every_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert re.search(rf"examples?:\n  convattn {command} ", out)
    assert max(map(len, out.splitlines())) <= 100


def test_the_version_names_torch_and_timm(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    out = capsys.readouterr().out
    assert out.startswith(f"convattn {convattn.__version__} (torch ")
    assert "timm" in out


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'trian'; did you mean 'train'?" in error(capsys, "trian")


def test_an_unknown_option_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no option --top_k; did you mean --top-k?" in error(
        capsys, "predict", "run", "a.png", "--top_k=3"
    )


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["--lr=3"], "lr=3"),
        (["--lr", "3"], "lr=3"),
        (["--lr"], "lr=VALUE"),
        (["--lr", "--name", "x"], "lr=VALUE"),
        (["-epochs=3"], "epochs=3"),
        (["epochs=3", "--epoch=4"], "epochs=4"),
        (["--batch-size", "3"], "batch_size=3"),
        (["--model_args.depths=[1,1]"], "model_args.depths=[1,1]"),
    ],
)
def test_a_setting_written_as_an_option_shows_how(
    words: list[str], setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error(capsys, "train", *words)
    assert message.endswith(f": settings are written without dashes: {setting}\n")


def test_an_option_of_training_that_is_no_setting_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = error(capsys, "train", "--resum=runs/x")
    assert "has no option --resum; did you mean --resume?" in message


def test_a_missing_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("convattn.tasks")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    message = error(capsys, "train")
    assert "convattn train needs pydantic, which is not installed" in message
    assert "pip install 'convattn[train]'; `convattn doctor` shows what else is missing" in message


def test_the_traceback_is_shown_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        main(["eval", "gone", "--traceback"])
    monkeypatch.setenv("CONVATTN_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["eval", "gone"])


def test_help_models_and_doctor_need_no_extra() -> None:
    code = (
        "import sys; from convattn.cli import main; main(['models', 'glnet_nano']); "
        "main(['doctor']); "
        "heavy = {'lightning', 'pydantic', 'rich', 'sklearn', 'matplotlib', 'torchmetrics'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["bench", "--help"],
        ["bench", "a", "--batch", "0"],
        ["trian"],
        ["eval", "--x"],
        ["eval", "gone"],
        ["predict", "gone", "a.png"],
        ["report", "gone"],
        ["data"],
        ["data", "scenes", "--help"],
        ["data", "scene"],
        ["data", "scenes"],
        ["data", "scenes", "--out", "x", "--size", "3"],
        ["train", "--settings"],
        ["train", "--recipes"],
        ["train", "--lr=3"],
        ["train", "epochs=many"],
        ["train", "epoch=3"],
        ["train", "--recipe", "digit"],
        ["train", "--resume", "gone"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_import_no_torch(words: list[str]) -> None:
    code = (
        "import sys; sys.argv[0] = 'bin/convattn'; from convattn.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'PIL', 'lightning', 'matplotlib', 'torchmetrics'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "NAME"],
        ["predict", "NAME", "a.png"],
        ["report", "NAME"],
        ["train", "--resume", "NAME"],
        ["train", "--recipe", "NAME"],
        ["train", "NAME=3"],
        ["train", "--NAME=3"],
        ["models", "NAME"],
        ["data", "NAME"],
        ["data", "scenes", "--out", "x", "--count", "NAME"],
        ["data", "scenes", "--out", "x", "--format", "NAME"],
        ["NAME"],
    ],
    ids=" ".join,
)
def test_a_name_in_a_message_sends_no_escape_sequence_to_the_terminal(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "gone\x1b[2J\n\udce9"
    message = error(capsys, *(word.replace("NAME", name) for word in words))
    assert message.endswith("\n")
    assert message[:-1].isprintable()
    assert r"\x1b[2J\n\udce9" in message


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "words",
    [["--version"], ["models", "glnet_nano"], ["train", "--settings"], ["train", "\u732b=3"]],
    ids=" ".join,
)
def test_every_output_can_be_printed_in_every_encoding(encoding: str, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "convattn", *words],
        capture_output=True,
        env=environment(PYTHONIOENCODING=encoding),
    )
    text = (done.stdout + done.stderr).decode(encoding)
    assert "Traceback" not in text
    assert done.returncode in (0, 2)
    assert text
