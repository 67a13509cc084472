"""The scripts of benchmarks/, run with --quick."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import backbones, common, dense, loading, ops, scaling, training
from benchmarks.common import Options
from benchmarks.flex import sliding_window_flex
from convattn.bench.cases import Built, Case, Group
from convattn.bench.record import read_document
from convattn.ops import sliding_window_attention
from tests.tolerances import TOLERANCE

SCRIPTS = {
    "ops": ops,
    "backbones": backbones,
    "training": training,
    "scaling": scaling,
    "dense": dense,
}


def run(script: str, *words: str) -> int:
    plan = SCRIPTS[script].plan
    return common.main(script, about="", plan=plan, budget=1, argv=words)


def only(name: str, *cases: str) -> Any:
    """Return a plan of one group, whose cases do nothing."""
    return lambda options: [Group(name, [Case(c, lambda: Built(lambda: None)) for c in cases])]


@pytest.mark.parametrize(
    "script",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ops", "backbones", "scaling", "dense")
        ),
        "training",
    ],
)
def test_a_quick_run_writes_every_group(script, tmp_path):
    path = tmp_path / "a.json"
    assert run(script, "--quick", "--output", str(path)) == 0
    document = read_document(path)
    options = Options(device="cpu", dtypes=("float32",), batch=2, compile=False, quick=True)
    planned = SCRIPTS[script].plan(options)
    assert [group["name"] for group in document["groups"]] == [group.name for group in planned]
    assert document["settings"] == {
        "threads": 1,
        "float32_matmul_precision": "highest",
        "quick": True,
    }
    assert document["command"] == f"python -m benchmarks.{script} --quick"
    for group, plan in zip(document["groups"], planned, strict=True):
        assert group["errors"] == {}
        assert list(group["runs"]) == [case.name for case in plan.cases]
        for name, found in group["runs"].items():
            assert len(found["seconds"]) == found["summary"]["count"] == group["rounds"] == 2
            assert found["memory_bytes"] >= 0, name
            assert 0 < found["summary"]["smallest"] <= found["summary"]["largest"]
        assert group["peak"]["macs_per_second"] > 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_a_plan_for_every_device(script):
    """The networks are built on the meta device."""
    module: ModuleType = SCRIPTS[script]
    cpu = module.plan(Options("cpu", ("float32", "bfloat16"), 8, compile=False, quick=False))
    gpu = module.plan(Options("cuda", ("bfloat16",), 128, compile=True, quick=False))
    for groups in (cpu, gpu):
        names = [group.name for group in groups]
        assert len(names) == len(set(names)) > 0
    if script in ("backbones", "training"):
        compiled = [group.name for group in gpu if ", compiled, " in group.name]
        assert len(compiled) * 2 == len(gpu)
    if script == "ops":
        flex = [group for group in gpu if "flex" in [case.name for case in group.cases]]
        assert len(flex) == 4 * 2 * 2
        assert "flex" not in [case.name for group in cpu for case in group.cases]


@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
def test_detectors_of_the_benchmark_find_objects(method):
    subject = dense.Subject(
        "detection", method, "glnet_nano", (64, 96), False, "cpu", "float32", (("channels", 16),)
    )
    call: Any = dense._evaluation(subject).call
    found = call()[0]
    assert len(found["boxes"]) > 10
    assert set(found["labels"].tolist()) == {0}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_case_can_be_pickled(script):
    options = Options("cuda", ("bfloat16",), 8, compile=False, quick=False, apart=True)
    for group in SCRIPTS[script].plan(options):
        assert group.apart
        for case in group.cases:
            assert pickle.loads(pickle.dumps(replace(case, macs=None))).name == case.name


@pytest.mark.parametrize(
    ("usual", "words", "apart", "command"),
    [
        (True, [], True, ""),
        (False, [], False, ""),
        (True, ["--device", "cuda"], False, " --device cuda"),
        (True, ["--together"], False, " --together"),
        (False, ["--apart"], True, " --apart"),
        (True, ["--apart", "--device", "cuda:0"], True, " --device cuda:0 --apart"),
    ],
)
def test_options_decide_which_computations_share_a_process(usual, words, apart, command):
    args = common._parser("ops", "", 1, usual).parse_args(words)
    assert common._options(args, usual).apart is apart
    assert common._command("ops", args) == f"python -m benchmarks.ops{command}"


@pytest.mark.slow
def test_a_script_with_own_processes_runs_its_main_function_once(tmp_path):
    """Each new process imports the script again."""
    path = tmp_path / "a.json"
    words = ["benchmarks.scaling", "--quick", "--apart", "--output", str(path)]
    found = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("groups in a few seconds") == 1
    document = read_document(path)
    assert [group["settings"]["processes"] for group in document["groups"]] == ["one each"] * 2
    assert [list(group["runs"]) for group in document["groups"]] == [["32 px", "64 px"]] * 2
    assert [group["errors"] for group in document["groups"]] == [{}, {}]


@pytest.mark.parametrize("stride", [1, 2])
def test_flex_attention_matches_the_reference(stride):
    q, k, v = torch.randn(3, 2, 16, 9, 9)
    position = torch.randn(1, 4, 9, 9)
    flex = sliding_window_flex(
        size=9, num_heads=4, window_size=7, stride=stride, device="cpu", compiled=False
    )
    expected = sliding_window_attention(
        q, k, v, num_heads=4, position=position, stride=stride, backend="reference"
    )
    rtol, atol = TOLERANCE[torch.float32].values()
    torch.testing.assert_close(flex(q, k, v, position), expected, rtol=rtol, atol=atol)


def test_scaling_computes_the_same_number_of_pixels_at_every_size():
    options = Options("cpu", ("float32",), 8, compile=False, quick=False)
    for group in scaling.plan(options):
        pixels = {case.images * case.details["size"] ** 2 for case in group.cases}
        assert pixels == {1024**2}


def test_only_chooses_groups_by_a_part_of_their_name(capsys):
    assert run("ops", "--quick", "--only", "pixel*backward", "--list") == 0
    (name,) = capsys.readouterr().out.splitlines()
    assert name == "pixel shift attention (8, 9x9), forward + backward, float32"


@pytest.mark.slow
def test_measuring_one_group_keeps_the_others(tmp_path):
    path = tmp_path / "a.json"
    words = ("--quick", "--output", str(path), "--only")
    for part in ("pixel*forward,", "ACmix*forward,", "pixel*forward,"):
        assert run("ops", *words, part) == 0
    names = [group["name"] for group in read_document(path)["groups"]]
    assert [name.split(" (")[0] for name in names] == [
        "pixel shift attention",
        "ACmix convolution path",
    ]


def test_an_interruption_keeps_the_finished_groups(tmp_path, capsys):
    path = tmp_path / "a.json"

    def interrupt() -> Built:
        raise KeyboardInterrupt

    def plan(options: Options) -> list[Group]:
        first = Group("first", [Case("a", lambda: Built(lambda: None))])
        return [first, Group("second", [Case("b", interrupt)])]

    words = ["--quick", "--output", str(path)]
    assert common.main("ops", about="", plan=plan, budget=1, argv=words) == 130
    assert [group["name"] for group in read_document(path)["groups"]] == ["first"]
    assert "Interrupted" in capsys.readouterr().err


def test_the_budget_is_divided_by_weight(tmp_path, monkeypatch):
    given: dict[str, float] = {}

    def fake(group: Group, *, limits: Any, **rest: Any) -> dict[str, Any]:
        given[group.name] = limits.seconds
        return {"name": group.name}

    monkeypatch.setattr(common, "run_group", fake)
    monkeypatch.setattr(common, "measure_peak", lambda *arguments: None)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # no call takes any time

    def plan(options: Options) -> list[Group]:
        return [Group("a", [], weight=1.0), Group("b", [], weight=2.0), Group("c", [], weight=1.0)]

    words = ["--budget", "80", "--output", str(tmp_path / "a.json")]
    assert common.main("ops", about="", plan=plan, budget=1, argv=words) == 0
    # The groups after a group share the time that it does not use.
    assert given == pytest.approx({"a": 20.0, "b": 80 * 2 / 3, "c": 80.0})


def test_a_quick_run_does_not_write_into_the_results(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    before = sorted(common.RESULTS.glob("*"))
    words = ["--quick", "--name", "here"]
    assert common.main("ops", about="", plan=only("g", "a"), budget=1, argv=words) == 0
    assert sorted(common.RESULTS.glob("*")) == before
    assert (tmp_path / "convattn-quick" / "here-ops.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nothing"], "no group has 'nothing' in its name; see --list"),
        (["--device", "tpu"], "device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        (["--budget", "-1"], "--budget must be positive, got -1"),
    ],
)
def test_wrong_options_end_with_a_message(words, message, capsys):
    assert run("ops", *words) == 2
    assert message in capsys.readouterr().err


def test_the_stored_command_has_the_compile_option(tmp_path):
    path = tmp_path / "a.json"
    words = ("--quick", "--no-compile", "--output", str(path))
    assert common.main("ops", about="", plan=only("g", "a"), budget=1, argv=words) == 0
    assert read_document(path)["command"] == "python -m benchmarks.ops --quick --no-compile"


def test_a_script_does_not_overwrite_results_of_another_machine(tmp_path, capsys):
    path: Path = tmp_path / "a.json"
    words = ["--quick", "--output", str(path)]
    assert common.main("ops", about="", plan=only("g", "a"), budget=1, argv=words) == 0
    document = json.loads(path.read_text())
    document["machine"]["cpu"] = "Another One"
    path.write_text(json.dumps(document))
    assert common.main("ops", about="", plan=only("g", "a"), budget=1, argv=words) == 2
    assert "another machine (Another One" in capsys.readouterr().err
    assert json.loads(path.read_text()) == document


@pytest.mark.slow
def test_loading_and_memory_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    words = ["--data", "digits", "--recipe", "digits", "--workers", "0", "1", "--batches", "1"]
    assert loading.main([*words, "--rounds", "1", "--epochs", "1", "--output", str(path)]) == 0
    document = json.loads(path.read_text())
    assert [step["workers"] for step in document["steps"]] == [0, 1]
    for step in document["steps"]:
        speeds = [step[name] for name in ("loading", "files", "memory", "files_over_memory")]
        assert all(len(values) == 1 and values[0] > 0 for values in speeds)
    (epoch,) = document["epochs"]["epochs"]
    assert epoch["main_megabytes"] > 100
    assert len(epoch["worker_megabytes"]) == 2
