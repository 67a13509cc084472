"""``convattn bench``: measure the speed of models on this machine, side by side."""

from __future__ import annotations

import argparse
import fnmatch
import re
from pathlib import Path
from typing import Any

from convattn.names import counted

HELP = "measure speed and memory of models, side by side"
DESCRIPTION = """Measure the speed and the memory of models, side by side.

Every model is warmed up; then the models take turns in rounds, so that a change in the speed of the
machine affects all of them. On a CPU, each model has its own process, so that no model reuses the
memory of another. Speeds are medians with quartiles, and ratios are computed in each round."""
EPILOG = """examples:
  convattn bench glnet_stl --against swin_tiny_patch4_window7_224 convnext_tiny
  convattn bench acmix_resnet50 --against resnet50 --dtype bfloat16 --threads 2
  convattn bench glnet_4g --against convnext_tiny --train --batch 32
  convattn bench glnet_4g --against convnext_tiny --device cuda --dtype bfloat16 --compile
  convattn bench --list 'swin*'

Models are those of `convattn models` and of timm, with random weights. Evaluation runs in the
deployed form, channels-last: this package's models after convattn.reparameterize, timm's with batch
norms and layer scales folded likewise. A training step is forward, backward and AdamW.

quartiles    half of the rounds lie between them; those of a ratio are in brackets
mult-adds    multiply-adds for one image; papers call them FLOPs
of peak      the time of the multiply-adds at the speed of large matrix products or convolutions,
             measured on the same machine, as a share of the time of the model
peak memory  memory for one batch, in addition to weights, images and outputs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", nargs="?", help="the model to measure")
    parser.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="models to compare with",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--dtype", default="float32", metavar="TYPE", help="float32, bfloat16, float16"
    )
    parser.add_argument(
        "--train", action="store_true", help="measure a training step, not evaluation"
    )
    parser.add_argument("--compile", action="store_true", help="apply torch.compile to every model")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images in a batch; default 8, on a GPU 128"
    )
    parser.add_argument("--size", metavar="PIXELS", help="192 or 192x256; default the model's own")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default PyTorch's")
    processes = parser.add_mutually_exclusive_group()
    processes.add_argument(
        "--apart",
        action="store_true",
        default=None,
        help="one process for each model (default on a CPU)",
    )
    processes.add_argument(
        "--together",
        dest="apart",
        action="store_false",
        help="all models in one process (default on a GPU)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="number of rounds")
    parser.add_argument(
        "--seconds", type=float, default=30, metavar="S", help="duration of the rounds; default 30"
    )
    parser.add_argument(
        "--as-trained", action="store_true", help="evaluate the trained form, without folding"
    )
    parser.add_argument("--json", metavar="FILE", help="write every sample; - prints it instead")
    parser.add_argument("--plot", metavar="FILE", help="draw the speeds: .png or .svg")
    parser.add_argument("--list", nargs="?", const="*", metavar="PATTERN", help="list the models")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.list is not None:
        return _list(args.list)
    if args.model is None:
        raise ValueError("name a model: convattn bench glnet_stl --against convnext_tiny")
    if args.model in args.against:
        raise ValueError(f"--against {args.model}: that is the model itself; name another")
    names = list(dict.fromkeys([args.model, *args.against]))
    _check(args, names)
    if args.plot:
        from convattn.bench.figures import check_picture

        check_picture(args.plot)
    document = _measure(args, names)
    _show(args, document)
    return 0


def _show(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Print the measurements, write them to a file and draw them, as the options say."""
    from convattn.bench.record import to_json
    from convattn.bench.table import comparison_table

    group = document["groups"][0]
    if args.json == "-":
        print(to_json(document), end="")
    else:
        print(_heading(document, group))
        print("\n".join(comparison_table(group)))
    if args.json not in (None, "-"):
        Path(args.json).write_text(to_json(document), encoding="utf-8")
    if args.plot:
        from convattn.bench.figures import save, speed_figure

        save(speed_figure(group), args.plot)


def _list(pattern: str) -> int:
    import timm

    import convattn.models  # noqa: F401  # registers its models with timm

    names = fnmatch.filter(timm.list_models(), pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}")
    print("\n".join(names))
    return 0


def _check(args: argparse.Namespace, names: list[str]) -> None:
    """Raise an error for a mistake in the arguments, before anything is measured."""
    _check_options(args)
    import torch

    from convattn.bench.models import DTYPES, check_device
    from convattn.models import create_model

    check_device(args.device)
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {args.dtype!r}")
    for name in names:
        with torch.device("meta"):
            create_model(name)


def _check_options(args: argparse.Namespace) -> None:
    """Raise an error for a mistake that can be found without torch."""
    if args.train and args.dtype == "float16":
        raise ValueError("--train in float16 needs a gradient scaler; use --dtype bfloat16")
    if args.train and args.as_trained:
        raise ValueError("--train measures the trained form: leave out --as-trained")
    for option in ("batch", "threads", "rounds", "seconds"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            raise ValueError(f"--{option} must be positive, got {value}")
    _size(args.size)
    for option in ("json", "plot"):
        path = getattr(args, option)
        if path not in (None, "-") and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"--{option} {path}: there is no folder {Path(path).parent}")


def _measure(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    import torch

    from convattn.bench.cases import Group
    from convattn.bench.floor import measure_peak
    from convattn.bench.models import DTYPES, Setting, default_batch, model_case, own_size
    from convattn.bench.progress import show_progress
    from convattn.bench.record import new_document
    from convattn.bench.run import run_group
    from convattn.bench.timing import Limits

    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting(
        size=_size(args.size) or own_size(args.model),
        batch=args.batch or default_batch(args.device),
        device=args.device,
        dtype=args.dtype,
        train=args.train,
        compile=args.compile,
        deployed=not args.as_trained,
    )
    group = Group(
        name=f"{args.model} beside {len(names) - 1} others" if len(names) > 1 else args.model,
        cases=[model_case(name, setting) for name in names],
        device=setting.device,
        dtype=setting.dtype,
        settings=setting.as_dict(),
        apart=torch.device(args.device).type == "cpu" if args.apart is None else args.apart,
    )
    command = "convattn " + " ".join(_words(args))
    document = new_document("bench", command=command, device=args.device, settings={})
    limits = Limits(rounds=args.rounds or 1000, least=args.rounds or 5, seconds=args.seconds)
    progress = show_progress()
    try:
        progress.group(args.model, 1, 1)
        progress.say("measuring the machine's peak")
        peak = measure_peak(args.device, DTYPES[args.dtype], min(1.0, args.seconds / 10))
        document["groups"].append(run_group(group, limits=limits, peak=peak, progress=progress))
        progress.done()
    finally:
        progress.close()
    return document


def _words(args: argparse.Namespace) -> list[str]:
    """Return the arguments of a command that repeats the measurement."""
    words = ["bench", args.model]
    for name, value in vars(args).items():
        if name in ("command", "run", "options", "model", "list", "json", "plot", "traceback"):
            continue
        if name == "apart" and value is False:
            words.append("--together")
        elif value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value not in (None, False, []):
            words += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return words


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if found is None:
        raise ValueError(f"--size must be pixels such as 192 or 192x256, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _lacks_kernels(document: dict[str, Any]) -> bool:
    return not document["machine"]["gpu"] and document["versions"]["c_kernels"] is None


def _heading(document: dict[str, Any], group: dict[str, Any]) -> str:
    settings, machine = group["settings"], document["machine"]
    height, width = settings["size"]
    threads = document["settings"]["threads"]
    device = machine["gpu"] or f"{counted(threads, 'thread')} of {machine['cpu']}"
    form = [] if settings["mode"] == "training step" else [f"{settings['form']} form"]
    words = [
        settings["mode"],
        *form,
        f"{settings['batch']} images of {height}x{width}",
        settings["dtype"],
        *(["compiled"] if settings["compile"] else []),
        device,
        *(["without C kernels (`convattn doctor` says why)"] if _lacks_kernels(document) else []),
        f"{group['rounds']} rounds",
    ]
    return ", ".join(words)
