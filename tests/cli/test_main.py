from __future__ import annotations

import re
import subprocess
import sys

import pytest

import convattn
from convattn.cli import main


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that is a mistake; return its one message."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: convattn" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "eval", "predict", "models", "doctor"])
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


def test_a_setting_written_as_an_option_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    message = error(capsys, "train", "--batch-size", "3")
    assert "settings are written KEY=VALUE, such as batch_size=5" in message


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


@pytest.mark.parametrize("words", [["--version"], ["bench", "--help"], ["trian"], ["eval", "--x"]])
def test_help_and_mistakes_import_no_torch(words: list[str]) -> None:
    code = (
        "import sys; sys.argv[0] = 'bin/convattn'; from convattn.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_message_shows_no_name_that_a_terminal_would_act_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = error(capsys, "eval", "gone\x1b[2J\udce9")
    assert message.endswith("\n")
    assert message[:-1].isprintable()
    assert r"\x1b[2J\udce9" in message
