from __future__ import annotations

from typing import Any

import pytest

from convattn.bench.figures import check_picture, save, speed_figure
from convattn.bench.statistics import summarize
from convattn.bench.table import comparison_table, macs_text, ratio_text, size_text


def run(seconds: list[float], **rest: Any) -> dict[str, Any]:
    summary = summarize(seconds).as_dict()
    floor = {"macs": 2_000_000_000, "seconds": 0.1, "share_reached": 0.5}
    made = {"images": 8, "macs": 16_000_000_000, "memory_bytes": 3 << 20, "floor": floor}
    return {**made, "summary": summary, "seconds": seconds, **rest}


def group(**runs: dict[str, Any]) -> dict[str, Any]:
    settings = {"mode": "evaluation", "dtype": "float32", "batch": 8}
    return {"runs": runs, "errors": {}, "settings": settings}


def test_a_table_has_the_ratio_of_the_first_model_to_each_other():
    lines = comparison_table(group(ours=run([0.1, 0.2, 0.4]), theirs=run([0.2, 0.2, 0.4])))
    assert lines[0].split()[-3:] == ["ours", "against", "it"]
    row = ["ours", "40.0", "26.7", "-", "53.3", "200", "2.00", "G", "50%", "3.0", "MiB"]
    assert lines[1].split() == row
    assert lines[2].split()[-4:] == ["1.00x", "(1.00", "-", "1.50)"]


def test_a_table_of_one_model_has_no_ratio():
    lines = comparison_table(group(ours=run([0.1])))
    assert "against" not in lines[0]
    assert len(lines) == 2


def test_a_missing_value_is_a_dash():
    bare = run([0.1], macs=None, floor=None, memory_bytes=None)
    assert comparison_table(group(ours=bare))[1].split()[-3:] == ["-", "-", "-"]


def test_a_table_ends_with_the_errors():
    found = group(ours=run([0.1]))
    found["errors"] = {"theirs": "out of memory"}
    assert comparison_table(found)[-1] == "theirs: out of memory"


def test_large_ratios_have_fewer_digits():
    assert ratio_text(run([1.0]), run([25.678])) == "25.7x (25.7 - 25.7)"


@pytest.mark.parametrize(
    ("bytes", "text"),
    [
        (2048, "2 KiB"),
        (3 << 20, "3.0 MiB"),
        (300 << 20, "300 MiB"),
        (5 << 30, "5.0 GiB"),
        (None, "-"),
    ],
)
def test_bytes_are_printed_with_a_unit(bytes, text):
    assert size_text(bytes) == text


def test_multiply_adds_are_printed_with_a_unit():
    assert (macs_text(4.43e9), macs_text(4.5e6), macs_text(None)) == ("4.43 G", "4.5 M", "-")


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_same_figure_has_the_same_bytes(tmp_path, ending):
    pytest.importorskip("matplotlib")
    found = group(ours=run([0.1, 0.2]), theirs=run([0.3, 0.4]))
    paths = [tmp_path / f"{i}{ending}" for i in range(2)]
    for path in paths:
        save(speed_figure(found), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size > 1000


def test_another_file_format_raises():
    with pytest.raises(ValueError, match=r"\.png or \.svg, got 'a\.jpg'"):
        check_picture("a.jpg")
