from __future__ import annotations

import pytest

from convattn.cli import main
from convattn.cli.data import SUBCOMMANDS


def test_without_a_subcommand_the_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert "usage: convattn data" in out
    for name, module in SUBCOMMANDS.items():
        assert f"    {name} " in out
        assert module.HELP in out


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["data", name, "--help"])
    out = capsys.readouterr().out
    assert f"usage: convattn data {name} " in out
    assert f"  convattn data {name} " in out.partition("example")[2]
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "scene"], "unknown command 'data scene'; did you mean 'data scenes'?"),
        (["data", "xyz"], "unknown command 'data xyz'. Known: data "),
        (["data", "--x"], "convattn data has no option --x. See: convattn data --help"),
        (
            ["data", "scenes", "--cuont", "3"],
            "convattn data scenes has no option --cuont; did you mean --count? "
            "See: convattn data scenes --help",
        ),
        (["data", "scenes", "coco"], "convattn data scenes takes no argument 'coco'"),
    ],
)
def test_an_unknown_word_is_one_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
