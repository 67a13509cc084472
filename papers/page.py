"""Print or write the page docs/models.md: the figures of every model and of its paper.

    python -m papers.page > docs/models.md
    python -m papers.page --write

It takes a minute.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from convattn.models import (
    PaperRow,
    count_macs,
    count_parameters,
    create_model,
    is_single_path,
    list_models,
    paper_rows,
)
from papers.dense import detection_section, segmentation_section
from papers.tables import markdown_table, read_rows

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_HERE = Path(__file__).parent
# Headings and name patterns, in the order of the page. A name belongs to the first match.
_NANO, _SINGLE, _BASELINES = "Nano models", "Single paths", "Baselines"
_FAMILIES = (
    ("ResNet-ACmix", ("acmix_resnet*",)),
    ("SAN-ACmix", ("acmix_san*",)),
    ("PVT-ACmix", ("acmix_pvt*",)),
    ("Swin-ACmix", ("acmix_swin*",)),
    ("Vision transformer with ACmix", ("acmix_deit*",)),
    ("X-volution", ("xvolution*",)),
    ("GLNet", ("glnet*",)),
    (_BASELINES, ("baseline_*", "san*", "pvt*", "swin*", "conv_swin*")),
)
_TABLE = files("convattn.models") / "papers.csv"
_THREE_READINGS = ("paper says", "published code does", "we do")
_INTRO = """# Models

`python -m papers.page --write` makes this page from the registry, `convattn/models/papers.csv` and
the tables in `papers`. Change these files, not the page.

Parameters are counted with 1,000 classes. Multiply-adds are those of one image of 224 x 224 pixels
(32 x 32 for the nano models): half of what `torch.utils.flop_counter` counts with every operator in
matrix or convolution form. Papers call them "FLOPs". The accuracies on ImageNet-1k are
those of the papers; we have not trained on ImageNet-1k. Numbers in the last column refer to the
table of figures that differ: it explains each of our figures that does not round to the paper's.
"""
_ABOUT = {
    "X-volution": """\
The paper prints gains over ResNets on ImageNet; see below. The ResNets are timm's `resnet34` and
`baseline_resnet50`.""",
    _BASELINES: """\
Networks that differ from those above only in the operator. `swin_*` are models of timm.""",
    _SINGLE: """\
`NAME_conv` and `NAME_attn`: ACmix with its convolution or its attention alone, GLMix with its local
or its global branch; the attention blocks of a GLNet do not change. With the attention of ACmix
alone the networks are Swin, PVT, SAN and the vision transformer.""",
    _NANO: "For images of 32 to 64 pixels, and for tests. They are not from a paper.",
}


class Figures(NamedTuple):
    """Our figures of a model."""

    parameters: int
    macs: int


class Published(NamedTuple):
    """A paper's figures of a model, as printed."""

    parameters: str  # millions
    macs: str  # thousand millions


def page() -> str:
    """Return the page, in Markdown."""
    parts = [_INTRO]
    for heading, names in _sections():
        table = _family_table(names)
        text = (f"## {heading}", _ABOUT.get(heading, ""), table)
        parts.append("\n\n".join(part for part in text if part))
    parts.append(f"## ACmix's ablations\n\n{_ablations()}")
    parts.append(f"## X-volution's results\n\n{_xvolution()}")
    parts.append(f"## Detection\n\n{detection_section()}")
    parts.append(f"## Segmentation\n\n{segmentation_section()}")
    parts.append(f"## Checkpoints\n\n{_checkpoints()}")
    parts.append(f"## Figures that differ\n\n{_figures_that_differ()}")
    parts.append(f"## What the networks compute\n\n{_networks()}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def unexplained() -> list[str]:
    """Return the figures that do not round to the paper's and have no entry in the differences."""
    return [
        f"{key}: {figure}"
        for key, ours, paper in _printed()
        for figure in differing_figures(ours, paper)
        if not _explanations(key, figure)
    ]


def explained_in_vain() -> list[str]:
    """Return the entries of differences.yaml whose figures do not differ or have no model."""
    differing = {
        (key, figure)
        for key, ours, paper in _printed()
        for figure in differing_figures(ours, paper)
    }
    return [
        f"{key}: {entry['figure']}"
        for entry in differences()["figures"]
        for key in entry["models"]
        if (key, entry["figure"]) not in differing
    ]


def ablation_rows() -> list[dict[str, str]]:
    """Return the rows of ACmix's ablations: figures, our model and its changed arguments."""
    return read_rows(_HERE / "ablations.csv")


def _printed() -> Iterator[tuple[str, Figures, Published]]:
    for row in paper_rows():
        yield row.name, _figures(row.name), _published(row.name)
    for ablation in ablation_rows():
        key = _key(ablation)
        yield key, _figures(key), _of_ablation(ablation)


def differing_figures(ours: Figures, paper: Published) -> Iterator[str]:
    """Yield the names of our figures that, rounded to the paper's digits, differ from it."""
    for figure, number, printed in (
        ("parameters", ours.parameters / 1e6, paper.parameters),
        ("multiply-adds", ours.macs / 1e9, paper.macs),
    ):
        digits = len(printed.partition(".")[2])
        if f"{number:.{digits}f}" != printed:
            yield figure


def _sections() -> list[tuple[str, list[str]]]:
    names = list_models()
    others = [row.name for row in paper_rows() if row.name not in names]  # timm's
    sections: dict[str, list[str]] = {heading: [] for heading, _ in _FAMILIES}
    sections |= {_SINGLE: [], _NANO: []}
    for name in sorted([*names, *others], key=_by_size):
        sections[heading_of(name)].append(name)
    return [(heading, found) for heading, found in sections.items() if found]


def heading_of(name: str) -> str:
    """Return the heading under which the page has a model."""
    if "nano" in name:
        return _NANO
    if is_single_path(name):
        return _SINGLE
    for heading, patterns in _FAMILIES:
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            return heading
    raise ValueError(f"no heading of the page matches {name}; add it to _FAMILIES")


def _by_size(name: str) -> tuple[str, int, str]:
    family = re.match(r"(acmix_|baseline_|conv_|xvolution_)?[a-z]*", name)
    return family.group() if family else name, _figures(name).parameters, name


def _family_table(names: Sequence[str]) -> str:
    papers = {row.name: row for row in paper_rows()}
    if not any(name in papers for name in names):
        lines = [(f"`{name}`", *_own(_figures(name))) for name in names]
        return markdown_table(("model", "parameters", "multiply-adds"), lines)
    head = (
        *("model", "paper's name", "parameters", "published code", "paper"),
        *("multiply-adds", "paper", "difference", "top-1", "training", "see"),
    )
    return markdown_table(head, [_family_row(name, papers.get(name)) for name in names])


def _family_row(name: str, paper: PaperRow | None) -> tuple[str, ...]:
    ours = _figures(name)
    parameters, macs = _own(ours)
    if paper is None:
        return (f"`{name}`", "", parameters, "", "", macs, *5 * ("",))
    printed = _published(name)
    code = "" if paper.code_params is None else f"{paper.code_params:,}"
    return (
        f"`{name}`",
        paper.model,
        parameters,
        code,
        f"{printed.parameters} M",
        macs,
        f"{printed.macs} G",
        f"{ours.macs / 1e9 / float(printed.macs) - 1:+.1%}",
        f"{paper.top1:.1f}",
        paper.training,
        _numbers(name, printed),
    )


def _ablations() -> str:
    lines = []
    for row in ablation_rows():
        parameters, macs = _own(_figures(_key(row)))
        change = f" with `{row['change']}`" if row["change"] else ""
        lines.append(
            (
                f"`{row['name']}`{change}",
                *(row[key] for key in ("alpha", "beta", "shift")),
                parameters,
                f"{row['params_m']} M",
                macs,
                f"{row['macs_g']} G",
                *(row[key] for key in ("top1", "fps")),
                _numbers(_key(row), _of_ablation(row)),
            )
        )
    head = (
        *("model", "alpha", "beta", "shift", "parameters", "paper", "multiply-adds", "paper"),
        *("top-1", "images/s", "see"),
    )
    source = ablation_rows()[0]["source"]
    return (
        f"{source}. `mix` and `shift` are keywords of the models.\n\n{markdown_table(head, lines)}"
    )


def _xvolution() -> str:
    rows = read_rows(_HERE / "xvolution.csv")
    keys = ("task", "method", "backbone", "attention", "metric", "value")
    lines = [
        (_names([row["name"]] if row["name"] else []), *(row[k] for k in keys)) for row in rows
    ]
    return f"{rows[0]['source']}.\n\n{markdown_table(('model', *keys), lines)}"


def _checkpoints() -> str:
    lines = [
        (_names(entry["models"]), f"`{entry['key']}`" if entry["key"] else "", entry["published"])
        for entry in differences()["checkpoints"]
    ]
    return (
        "`convattn.load_official(model, PATH)` loads them strictly: no weight may be missing or "
        "unexpected. The file may have the weights under another key, or be the state dict.\n\n"
        + markdown_table(("models", "under the key", "published"), lines)
    )


def _figures_that_differ() -> str:
    lines = [
        (str(number), _names(entry["models"]), entry["figure"], *_three(entry))
        for number, entry in enumerate(differences()["figures"], start=1)
    ]
    return markdown_table(("", "models", "figure", *_THREE_READINGS), lines)


def _networks() -> str:
    lines = [(entry["topic"], *_three(entry)) for entry in differences()["networks"]]
    return markdown_table(("", *_THREE_READINGS), lines)


def _numbers(key: str, paper: Published) -> str:
    found = [
        n for what in differing_figures(_figures(key), paper) for n in _explanations(key, what)
    ]
    return ", ".join(map(str, sorted(found)))


def _explanations(key: str, figure: str) -> list[int]:
    return [
        number
        for number, entry in enumerate(differences()["figures"], start=1)
        if key in entry["models"] and figure == entry["figure"]
    ]


@cache
def _figures(key: str) -> Figures:
    name, _, change = key.partition(" ")
    arguments: dict[str, Any] = dict([change.split("=")]) if change else {}
    with torch.device("meta"):
        model = create_model(name, **arguments)
    return Figures(count_parameters(model), count_macs(model))


@cache
def _published(name: str) -> Published:
    row = next(row for row in read_rows(_TABLE) if row["name"] == name)
    return Published(row["params_m"], row["macs_g"])


@cache
def differences() -> dict[str, Any]:
    """Return the entries of differences.yaml: figures, networks and checkpoints."""
    return yaml.safe_load((_HERE / "differences.yaml").read_text(encoding="utf-8"))


def _of_ablation(row: dict[str, str]) -> Published:
    return Published(row["params_m"], row["macs_g"])


def _key(ablation: dict[str, str]) -> str:
    return " ".join(ablation[part] for part in ("name", "change") if ablation[part])


def _own(ours: Figures) -> tuple[str, str]:
    macs = f"{ours.macs / 1e9:.2f} G" if ours.macs > 1e8 else f"{ours.macs / 1e6:.1f} M"
    return f"{ours.parameters:,}", macs


def _names(keys: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


def _three(entry: dict[str, str]) -> tuple[str, ...]:
    return entry["paper"], entry["code"], entry["ours"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m papers.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="write the page")
    if parser.parse_args(argv).write:
        PAGE.write_text(page(), encoding="utf-8")
        print(PAGE)
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
