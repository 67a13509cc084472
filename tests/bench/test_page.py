"""docs/performance.md has the values of the results, missed targets too."""

from __future__ import annotations

import itertools
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import page as pages
from benchmarks.common import Options, _asked
from benchmarks.networks import CONVNEXT, DEIT, RESNET, SWIN
from benchmarks.page import DOCS, SCRIPTS, load, page
from benchmarks.paths import SITUATIONS, path_rows, reasons
from benchmarks.pictures import accuracy_figure, scaling_figure
from benchmarks.tables import (
    dense_tables,
    describe,
    network_tables,
    operator_table,
    scaling_table,
    top1,
)
from benchmarks.targets import TARGETS, pixel_costs, target_rows, verdict
from convattn.bench.floor import Peak
from convattn.bench.record import new_document, to_json
from convattn.bench.statistics import summarize
from convattn.models import list_models
from convattn.ops.convolution.gelu import has_kernel
from convattn.ops.dispatch import OPERATORS
from convattn.ops.kernels.native.library import available

PAGE = DOCS / "performance.md"


def run(*seconds: float, **rest: Any) -> dict[str, Any]:
    floor = {"macs": 10**9, "seconds": 0.1, "share_reached": 0.5}
    made = {"images": 8, "macs": 32 * 10**9, "memory_bytes": 1 << 20, "floor": floor}
    times = list(seconds)
    return {**made, "summary": summarize(times).as_dict(), "seconds": times, **rest}


def group(name: str, runs: dict[str, Any], **settings: Any) -> dict[str, Any]:
    usual = {"device": "cpu", "dtype": "float32", "mode": "evaluation", "batch": 8}
    return {
        "name": name,
        "settings": {**usual, "compile": False, **settings},
        "commit": "0123456789ab",
        "rounds": 3,
        "peak": Peak(5e10, "by hand").as_dict(),
        "runs": runs,
        "errors": {},
    }


def documents() -> dict[str, Any]:
    made = {}
    for script in SCRIPTS:
        made[script] = new_document(script, command="by hand", device="cpu", settings={})
    made["backbones"]["groups"] = [
        group("ResNets, float32", {RESNET: run(1.0, 1.0), "acmix_resnet50": run(2.0, 2.0)}),
        group(
            "transformers, float32",
            {
                SWIN: run(1.0, 2.0, 4.0),
                CONVNEXT: run(0.5, 0.5, 0.5),
                "acmix_swin_tiny": run(1.0, 2.0, 4.0),
                "glnet_stl": run(0.5, 1.0, 2.0),
                "glnet_4g": run(1.0, 1.0, 1.0),
            },
        ),
    ]
    made["ops"]["groups"] = [
        group(
            f"sliding window (64, {size}x{size}), stride 1, forward, float32",
            {
                "reference": run(slow, memory_bytes=100 << 20),
                "auto": run(1.0, memory_bytes=10 << 20),
                "tiled": run(1.5),
            },
            operator="sliding window",
            mode="forward",
            channels=64,
            size=[size, size],
            stride=1,
        )
        for size, slow in ((56, 30.0), (28, 60.0))
    ]
    made["scaling"]["groups"] = [
        group(
            "GLMix operator, float32",
            {
                "128 px": run(1.0, 2.0, images=4, size=128, memory_bytes=1000),
                "256 px": run(1.1, 2.2, images=1, size=256, memory_bytes=1300),
            },
            of="GLMix operator",
        )
    ]
    return made


def rows() -> dict[str, Any]:
    return {row.what: row for row in target_rows(documents())}


@pytest.mark.skipif(
    not has_kernel(torch.bfloat16), reason="the page's paths are those of oneDNN in bfloat16 too"
)
@pytest.mark.skipif(not available(), reason="the page's paths are those of C kernels")
def test_the_page_is_what_the_command_prints():
    assert PAGE.read_text(encoding="utf-8") == page(load())


def test_paths_are_those_that_the_tables_choose():
    found = {row[:2]: dict(zip(SITUATIONS, row[2:], strict=True)) for row in path_rows()}
    large = found["sliding window 7x7", "larger"]
    on_cpu = "`native`" if available() else "`strips`"
    assert (large["float32"], large["GPU"], large["exported"]) == (on_cpu, "`tiled`", "`tiled`")
    assert found["sliding window 7x7", "18x18"]["GPU"] == "`dense`"
    assert found["sliding window 7x7", "9x9 and smaller"]["float32"] == "`dense`"
    wide = found["depth-wise convolution", "5x5"]
    threes = "`threes`" if has_kernel(torch.bfloat16) else "`reference`"
    assert (wide["bfloat16"], wide["bfloat16, gradients"]) == ("`reference`", threes)
    for operator in OPERATORS.values():
        said = [f"`{path.name}` - {path.because}" for path in operator.paths]
        assert any(all(words in text for words in said) for text in reasons()), operator.name


def test_the_command_of_every_target_chooses_existing_groups():
    for row in target_rows({}):
        script, _, pattern = shlex.split(row.command)
        module = import_module(f"benchmarks.{script}")
        plan = module.plan(Options("cpu", ("float32",), 8, compile=False, quick=False))
        chosen = [group.name for group in plan if _asked(group.name, pattern)]
        assert 1 <= len(chosen) <= 8, row
        if "forward" in pattern:
            assert all((", forward," in name) == (pattern[-9:] == "*forward,") for name in chosen)


def test_the_page_shows_environment_variables_that_change_the_speed():
    made = documents()["backbones"]
    made["environment"] = {"MALLOC_TRIM_THRESHOLD_": "1"}
    assert describe(made).endswith("`MALLOC_TRIM_THRESHOLD_=1 by hand`")


@pytest.mark.parametrize(
    ("processes", "text"),
    [
        ([{}, {}], "3 rounds, all in one process."),
        ([{"processes": "one each"}] * 2, "3 rounds, one process each."),
        ([{}, {"processes": "one each"}], "3 rounds, some together, some in one process each."),
    ],
)
def test_the_page_says_whether_networks_shared_a_process(processes, text):
    made = documents()["backbones"]
    for found, settings in zip(made["groups"], processes, strict=True):
        found["settings"].update(settings)
    assert text in describe(made)


def test_the_page_shows_the_error_of_a_path():
    made = documents()["ops"]
    made["groups"][0]["errors"] = {"triton": "no such kernel"}
    assert f"{made['groups'][0]['name']}, triton: no such kernel" in operator_table(made)


def test_the_figures_of_the_page_exist():
    for picture in re.findall(r"\]\((images/[^)]*)\)", PAGE.read_text(encoding="utf-8")):
        assert (DOCS / picture).stat().st_size > 1000, picture


def test_every_target_has_a_row_without_results():
    text = page({})
    for target in TARGETS:
        assert f"`{target.ours}` against" in text
    assert text.count("not measured yet") == len(target_rows({})) == 11
    for script in SCRIPTS:
        assert f"python -m benchmarks.{script}\n" in text
        assert f"python -m benchmarks.{script} --device cuda\n" in text
    assert "{{" not in text


def test_ratios_are_taken_by_round_and_missed_targets_are_shown():
    found = rows()
    lost = found["`acmix_resnet50` against ResNet-50, float32"]
    assert (lost.measured, lost.verdict) == ("0.50x (0.50 - 0.50)", "missed")
    won = found["`glnet_stl` against Swin-T, float32"]
    assert (won.measured, won.verdict) == ("2.00x (2.00 - 2.00)", "aim reached")
    same = found["`acmix_swin_tiny` against Swin-T, float32"]
    assert (same.measured, same.verdict) == ("1.00x (1.00 - 1.00)", "aim reached")


def test_the_slowest_shape_decides_the_target_of_sliding_windows():
    found = rows()
    speed = found["sliding window against the reference, forward, float32"]
    assert (speed.measured, speed.verdict) == ("30x to 60x, 2 shapes", "reached")
    memory = found["peak memory of the sliding window against the reference, forward, float32"]
    assert (memory.least, memory.aim) == ("1/8", "1/20")
    assert (memory.measured, memory.verdict) == ("1/10 to 1/10, 2 shapes", "reached")


def test_the_costs_per_pixel_are_compared_by_round():
    costs = pixel_costs(documents()["scaling"]["groups"][0])
    assert [cost.time.median for cost in costs] == pytest.approx([1.0, 1.1])
    assert [cost.memory.median for cost in costs] == pytest.approx([1.0, 1.3])
    assert costs[0].bytes == 1000 / (4 * 128**2)
    found = rows()
    time = found["GLMix operator: time per pixel, 128 to 256 px"]
    assert (time.measured, time.verdict) == ("1.10x at 256 px, at most 1.10x", "reached")
    assert found["GLMix operator: memory per pixel, 128 to 256 px"].verdict == "missed"


def test_a_network_that_failed_misses_its_target():
    made = documents()
    broken = made["backbones"]["groups"][0]
    del broken["runs"]["acmix_resnet50"]
    broken["errors"] = {"acmix_resnet50": "out of memory"}
    row = next(r for r in target_rows(made) if r.what.startswith("`acmix_resnet50`"))
    assert (row.measured, row.verdict) == ("`acmix_resnet50` failed, see below", "missed")
    assert "acmix_resnet50: out of memory" in network_tables(made["backbones"])


def test_a_page_without_a_successful_run_can_be_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    made = documents()
    for document in made.values():
        for found in document["groups"]:
            found.update(errors=dict.fromkeys(found["runs"], "out of memory"), runs={}, rounds=0)
    text = page({"cpu-a-b": {name: d for name, d in made.items() if d["groups"]}})
    assert "GLMix operator: time and memory per pixel | 1.15x | 1.05x | 128 px, 256 px fail" in text
    assert "GLMix operator, float32, 256 px: out of memory" in text
    assert "stride 1, forward, float32, tiled: out of memory" in text
    assert len(pages.draw({"cpu-a-b": made}, tmp_path)) == 2


def test_names_in_the_figure_do_not_overlap():
    pytest.importorskip("matplotlib")
    made = documents()["backbones"]
    first, second = made["groups"]
    speeds = {
        "acmix_resnet50": 3.69,
        RESNET: 5.72,
        "acmix_san10": 6.07,
        "san10": 6.96,
        "acmix_resnet38": 10.1,
        "acmix_pvt_tiny": 16.7,
        "glnet_4g": 7.1,
        DEIT: 31.5,
    }
    first["runs"] = {name: run(8 / speed) for name, speed in speeds.items()}
    second["runs"] = {}
    figure: Any = accuracy_figure(made)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(speeds)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("value", "expected"), [(0.59, "missed"), (0.6, "reached"), (1.0, "aim reached")]
)
def test_a_value_at_a_bound_reaches_the_target(value, expected):
    assert verdict(value, 0.6, 1.0) == expected


def test_tables_have_the_measured_values():
    made = documents()
    networks = network_tables(made["backbones"])
    assert "| `acmix_resnet50` | 4.00 | 4.00 - 4.00 | 4.00 G | 50% | 1.0 MiB | 77.8 |" in networks
    operators = operator_table(made["ops"]).splitlines()
    assert operators[2].startswith("| sliding window | (64, 56x56) | forward | float32 | 30,000 ")
    assert "30.0x (30.0 - 30.0) | 100 MiB / 10.0 MiB | 50% | tiled 1,500 |" in operators[2]
    assert len(scaling_table(made["scaling"]).splitlines()) == 2 + 2


def test_table_of_detectors_has_speed_memory_and_errors():
    made = documents()["dense"]
    runs = {
        SWIN: run(2.0, images=1, parameters=48_000_000),
        "glnet_stl": run(1.0, images=1, parameters=50_000_000, macs=None),
    }
    made["groups"] = [group("Mask R-CNN, training step, float32", runs)]
    made["groups"][0]["errors"] = {"glnet_4g": "out of memory"}
    text = dense_tables(made)
    assert text.startswith("**Mask R-CNN, training step, float32**\n")
    assert f"| `{SWIN}` | 0.50 | 0.50 - 0.50 | 48.0 M | 32.00 G | 1.0 MiB | 1x |" in text
    assert "| `glnet_stl` | 1.00 | 1.00 - 1.00 | 50.0 M | - | 1.0 MiB | 2.00x (2.00" in text
    assert text.endswith("glnet_4g: out of memory")
    shown = page({"cpu-a-b": {"dense": made}})
    assert text in shown
    assert "### Targets" not in shown  # they are for other scripts


def test_the_page_has_a_section_per_machine_and_names_missing_results(tmp_path: Path):
    for script, document in documents().items():
        (tmp_path / f"cpu-a-b-{script}.json").write_text(to_json(document))
    machines = load(tmp_path)
    assert set(machines) == {"cpu-a-b"}
    text = page(machines)
    missing = ", ".join(f"`python -m benchmarks.{script}`" for script in ("training", "dense"))
    assert f"Not measured on this machine yet: {missing}." in text
    assert "images/performance-cpu-a-b-scaling.png" in text
    assert "--device cuda" in text


def test_results_of_a_gpu_are_in_the_section_of_gpus(tmp_path: Path):
    made = documents()["backbones"]
    made["machine"].update(gpu="NVIDIA H200", gpu_memory_gib=139, device="cuda", cuda="13.2")
    for measured in made["groups"]:
        measured["settings"].update(device="cuda", dtype="bfloat16", compile=True)
    (tmp_path / "gpu-h200-backbones.json").write_text(to_json(made))
    text = page(load(tmp_path))
    assert text.index("## CPU") < text.index("## GPU") < text.index("## NVIDIA H200")
    assert "against Swin-T, bfloat16, compiled | 0.8x | 0.95x | 1.00x" in text


def test_figures_show_the_costs_and_are_written_to_files(tmp_path: Path):
    pytest.importorskip("matplotlib")
    made = documents()
    assert len(accuracy_figure(made["backbones"]).axes) == 1
    lines: list[Any] = [axes.lines[0] for axes in scaling_figure(made["scaling"]).axes]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([1.0, 1.1]),  # time
        pytest.approx([1.0, 1.3]),  # memory
    ]
    drawn = pages.draw({"cpu-a-b": made}, tmp_path)
    assert [path.name for path in drawn] == [
        "performance-cpu-a-b-backbones.png",
        "performance-cpu-a-b-scaling.png",
    ]


def test_accuracies_are_those_of_the_papers():
    assert (top1(RESNET), top1(CONVNEXT), top1(SWIN)) == (76.9, 82.1, 81.3)
    assert top1("acmix_deit_tiny") is None
    assert {target.ours for target in TARGETS} <= set(list_models())
