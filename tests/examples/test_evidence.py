"""docs/evidence.md has the results of docs/evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convattn.runs.results import Run
from examples.evidence import PAGE, main, page, read_results, result_of

SETTINGS = "task: detection\ndata: voc:/home/me/data/bccd\nseed: 3\n"


def run(folder: Path) -> Run:
    (folder / "data.json").write_text(json.dumps({"train": 1800}))
    return Run(
        folder,
        epochs=[{"epoch": 1, "images_per_second": 1.0}, {"epoch": 2, "images_per_second": 0.5}],
        config=SETTINGS,
        environment={
            "git_commit": "0123456789abcdef",
            "processor": "a CPU",
            "cpu_cores": 2,
            "threads": 1,
            "torch": "2.14.1",
            "starts": [
                {
                    "command": "convattn train --data voc:/home/me/data/bccd "
                    "classes=/home/me/names.txt --resume /tmp/runs/a lr=1e-3"
                }
            ],
        },
    )


def evaluation(**values: Any) -> dict[str, Any]:
    return {
        "model": "glnet_nano",
        "method": "retinanet",
        "split": "test",
        "images": 72,
        "map50": 0.75,
        "map": 0.41234567,
        "per_class": [{"name": "RBC", "map50": 0.8}, {"name": "WBC", "map50": 0.7}],
        "parameters": 1_500_000,
        "epoch": 2,
        **values,
    }


def result(folder: Path, **values: Any) -> dict[str, Any]:
    return {**result_of(run(folder), evaluation(**values)), "name": "cells"}


def test_page_is_what_the_command_prints(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(read_results())


def test_result_has_the_numbers_and_the_cost(tmp_path):
    found = result(tmp_path)
    assert found["metrics"] == {"map50": 0.75, "map": 0.4123}
    assert found["per_class"] == {"RBC": 0.8, "WBC": 0.7}
    assert (found["epoch"], found["epochs"], found["hours"], found["seed"]) == (2, 2, 1.5, 3)
    assert json.loads(json.dumps(found)) == found


def test_result_has_no_folders_of_this_machine(tmp_path):
    found = result(tmp_path)
    assert found["data"] == "voc:bccd"
    assert found["commands"] == [
        "convattn train --data voc:bccd classes=names.txt --resume a lr=1e-3"
    ]
    assert "/home" not in json.dumps(found)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.85, "aim reached"), (0.75, "reached"), (0.5, "missed (70%)"), (None, "missed (70%)")],
)
def test_page_says_whether_the_target_is_reached(tmp_path, value, verdict):
    text = page([result(tmp_path, map50=value)])
    percent = "-" if value is None else f"{value:.1%}"
    row = f"| cells | `retinanet`, `glnet_nano` | test | 72 | {percent} | {verdict} | 1.5 M |"
    assert f"{row} 2 of 2 | 1.5 |" in text
    assert "| cells | 80.0% | 70.0% |" in text
    assert text.count("No result yet.") == 2
    assert "{{" not in text


def test_lower_number_decides_for_boxes_and_masks(tmp_path):
    made = result(tmp_path, map50=0.95, mask_map50=0.85)
    text = page([{**made, "data": "coco:coco16"}])
    assert "| 95.0% | 85.0% | missed (90%) |" in text


def test_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is not a finished run" in capsys.readouterr().err
