"""``convattn models``: list the models with their cost and the accuracy that the paper prints."""

from __future__ import annotations

import argparse
import difflib
import json
from typing import Any

HELP = "list the models"
DESCRIPTION = "List the models: parameters, multiply-adds, input size and accuracy in the paper."
EPILOG = """examples:
  convattn models 'glnet*'
  convattn models acmix_pvt_tiny pvt_tiny

Multiply-adds are counted for one image of the input size (papers call them FLOPs). The accuracy is
ImageNet-1k top-1 as printed in the paper; docs/models.md has the other numbers of the papers. A
part of a name selects all models that contain it. Any model of timm can be trained as well."""
_RESULTS = " ImageNet-1k results"  # left out, since the heading has it
_LINE = "{:<26} {:>11} {:>9} {:>8} {:>6}  {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("patterns", nargs="*", metavar="pattern", help="such as 'glnet*'")
    parser.add_argument(
        "--all", action="store_true", help="without a pattern: list variants with only one path too"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from convattn.models import is_single_path, list_models

    asked = [name for pattern in args.patterns for name in _names(pattern)]
    names = list(dict.fromkeys(asked)) or list_models()
    shown = [n for n in names if args.all or args.patterns or not is_single_path(n)]
    if args.json:
        print(json.dumps([_describe(name) for name in shown], indent=2))
        return 0
    print(
        _LINE.format("model", "parameters", "mult-adds", "input", "top-1", "ImageNet-1k top-1 from")
    )
    for name in shown:
        print(_row(_describe(name)), flush=True)
    if len(shown) < len(names):
        print(f"and {len(names) - len(shown)} with only one path: convattn models --all")
    return 0


def _names(pattern: str) -> list[str]:
    from convattn.models import list_models

    names = list_models(pattern) or list_models(f"*{pattern}*")
    if not names:
        near = difflib.get_close_matches(pattern.strip("*"), list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; convattn models lists them all"
        raise ValueError(f"no model matches {pattern!r}{hint}")
    return names


def _describe(name: str) -> dict[str, Any]:
    from timm.data import resolve_model_data_config

    from convattn.models import count_macs, count_parameters, create_model, paper_row

    model = create_model(name, device="meta")
    paper = paper_row(name)
    return {
        "name": name,
        "parameters": count_parameters(model),
        "macs": count_macs(model),
        "input_size": list(resolve_model_data_config(model)["input_size"]),
        "paper_top1": paper.top1 if paper else None,
        "paper": paper.source if paper else None,
        "training": paper.training if paper else None,
    }


def _row(found: dict[str, Any]) -> str:
    height, width = found["input_size"][1:]
    macs = f"{found['macs'] / 1e9:.2f} G" if found["macs"] > 1e9 else f"{found['macs'] / 1e6:.0f} M"
    top1, source = (
        "-",
        "no paper: a variant for small images" if width < 224 else "not in the paper",
    )
    if found["paper"] is not None:
        top1, source = f"{found['paper_top1']:.1f}", found["paper"].removesuffix(_RESULTS)
    if found["training"] not in (None, "standard"):
        source += f", {found['training']}"
    return _LINE.format(
        found["name"], f"{found['parameters']:,}", macs, f"{height}x{width}", top1, source
    )
