from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from convattn.bench.machine import describe_commit, describe_machine, same_machine, slug
from convattn.bench.record import Record, new_document, read_document, to_json


def document(script: str = "ops", **machine: Any) -> dict[str, Any]:
    new = new_document(script, command="by hand", device="cpu", settings={"quick": True})
    new["machine"].update(machine)
    return new


def group(name: str, rounds: int = 1) -> dict[str, Any]:
    return {"name": name, "rounds": rounds}


def names(path: Path) -> list[str]:
    return [group["name"] for group in read_document(path)["groups"]]


def test_a_result_describes_the_machine_and_the_versions():
    found = document()
    assert {"device", "cpu", "cores", "flags", "memory_gib", "gpu", "os"} <= set(found["machine"])
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["gpu"] is None
    assert {"python", "torch", "timm", "convattn", "triton", "c_kernels"} <= set(found["versions"])
    assert found["settings"]["threads"] == 1
    assert "host" not in json.dumps(found).lower()


def test_the_commit_is_an_abbreviated_hash():
    commit = describe_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{12}\+?", commit)


def test_the_file_is_written_after_each_group(tmp_path):
    path = tmp_path / "new" / "a.json"
    record = Record(path, document())
    record.add(group("first"))
    assert names(path) == ["first"]
    record.add(group("second"))
    assert names(path) == ["first", "second"]
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_group_replaces_the_earlier_group_of_its_name_only(tmp_path):
    path = tmp_path / "a.json"
    before = Record(path, document())
    before.add(group("first", rounds=1))
    before.add(group("second", rounds=1))
    Record(path, document()).add(group("second", rounds=2))
    found = read_document(path)["groups"]
    assert [(g["name"], g["rounds"]) for g in found] == [("first", 1), ("second", 2)]


def test_keep_removes_unknown_groups_and_sorts_the_others(tmp_path):
    record = Record(tmp_path / "a.json", document())
    for name in ("old", "second", "first"):
        record.add(group(name))
    record.keep(["first", "second", "third"])
    assert names(tmp_path / "a.json") == ["first", "second"]


def test_results_of_another_machine_are_overwritten_by_force_only(tmp_path):
    path = tmp_path / "a.json"
    Record(path, document(cpu="Another One", cores=64)).add(group("theirs"))
    with pytest.raises(ValueError, match=r"another machine \(Another One, 64 cores; .*--name"):
        Record(path, document())
    assert names(path) == ["theirs"]
    Record(path, document(), force=True).add(group("ours"))
    assert names(path) == ["ours"]


def test_results_of_another_script_are_not_overwritten(tmp_path):
    path = tmp_path / "a.json"
    Record(path, document("ops")).add(group("ops"))
    with pytest.raises(ValueError, match="results of 'ops'"):
        Record(path, document("training"))


@pytest.mark.parametrize(
    ("where", "name"),
    [("versions", "torch"), ("versions", "c_kernels"), ("environment", "MALLOC_X")],
)
def test_results_of_other_versions_or_allocators_are_not_mixed(tmp_path, where, name):
    path = tmp_path / "a.json"
    Record(path, document()).add(group("first"))
    other = document()
    other[where][name] = "0.1"
    with pytest.raises(ValueError, match=rf"has results of {name} .*, here 0\.1: choose another"):
        Record(path, other)
    assert Record(path, other, force=True).document["groups"] == []
    other = document()
    other["versions"]["python"] = "0.1"
    Record(path, other)


def test_a_result_has_the_environment_variables_that_change_the_speed(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123")
    monkeypatch.setenv("LD_PRELOAD", "/home/me/libjemalloc.so.2:/opt/b.so")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET", "me")
    found = document()["environment"]
    assert found["MALLOC_TRIM_THRESHOLD_"] == "123"
    assert found["LD_PRELOAD"] == "libjemalloc.so.2 b.so"
    assert not {"OMP_NUM_THREADS", "SECRET"} & set(found)


def test_results_of_different_thread_counts_are_not_mixed(tmp_path):
    path = tmp_path / "a.json"
    Record(path, document()).add(group("one"))
    other = document()
    other["settings"]["threads"] = 2
    with pytest.raises(ValueError, match="results of 1 threads, this run has 2: set --threads 1"):
        Record(path, other)


NONE = "has no results of a benchmark in format version 1"
WRONG = [("{", "is not a JSON file"), ("[]", NONE), ("{}", NONE), ('{"schema": 0}', NONE)]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_file_without_results_raises(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_document(path)


def test_samples_are_rounded_and_written_on_one_line():
    text = to_json({"seconds": [0.123456789, 2.0], "size": [3, 4], "name": "a [b]"})
    assert '"seconds": [ 0.1234568, 2.0 ]' in text
    assert json.loads(text) == {"seconds": [0.1234568, 2.0], "size": [3, 4], "name": "a [b]"}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"gpu": None, "cpu": "AMD EPYC (Zen 5)"}, "cpu-amd-epyc-zen-5"),
        ({"gpu": None, "cpu": "AMD EPYC 9654 96-Core Processor"}, "cpu-amd-epyc-9654"),
        (
            {"gpu": None, "cpu": "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz"},
            "cpu-intel-xeon-platinum-8480",
        ),
        ({"gpu": "NVIDIA H200", "cpu": "x"}, "gpu-h200"),
        ({"gpu": None, "cpu": ""}, "cpu-unknown"),
    ],
)
def test_a_machine_has_a_short_name(machine, expected):
    assert slug(machine) == expected


def test_a_machine_with_a_gpu_is_another_machine():
    here = describe_machine()
    assert same_machine(here, describe_machine())
    assert not same_machine(here, {**here, "gpu": "NVIDIA H200", "device": "cuda"})
