"""The common part of the scripts: options, division of the time, the file of results."""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from convattn.bench.cases import Group
from convattn.bench.floor import Peak, measure_peak
from convattn.bench.machine import describe_machine, slug
from convattn.bench.models import DTYPES, check_device, default_batch
from convattn.bench.progress import Progress, show_progress
from convattn.bench.record import Record, new_document
from convattn.bench.run import run_group
from convattn.bench.timing import Limits

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """The options that a plan of groups depends on."""

    device: str
    dtypes: tuple[str, ...]
    batch: int
    compile: bool
    quick: bool
    apart: bool = False  # each computation in its own process


Plan = Callable[[Options], list[Group]]


def main(
    script: str,
    *,
    about: str,
    plan: Plan,
    budget: float,
    apart: bool = False,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a script of benchmarks and return its exit status.

    Args:
        script: the name, as in ``python -m benchmarks.NAME``.
        about: the description for ``--help``.
        plan: returns the groups to measure.
        budget: the default of ``--budget``, in seconds.
        apart: whether, on a CPU, each computation has its own process by default.
        argv: the words of the command line; None for those of the process.
    """
    args = _parser(script, about, budget, apart).parse_args(argv)
    try:
        return _run(script, plan, args, apart)
    except (ValueError, OSError) as error:
        print(f"benchmarks.{script}: {error}", file=sys.stderr)
        return 2


def _parser(script: str, about: str, budget: float, apart: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{script}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--dtype", choices=DTYPES, help="measure this data type only")
    parser.add_argument("--batch", type=int, help="images per call; default 8, on a GPU 128")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="also measure compiled networks; default on a GPU",
    )
    usual = (" (default on a CPU)", " (default on a GPU)") if apart else ("", " (default)")
    processes = parser.add_mutually_exclusive_group()
    processes.add_argument(
        "--apart",
        action="store_true",
        default=None,
        help=f"each computation in its own process{usual[0]}",
    )
    processes.add_argument(
        "--together", dest="apart", action="store_false", help=f"all in one process{usual[1]}"
    )
    parser.add_argument("--threads", type=int, help="threads of the CPU; default PyTorch's")
    parser.add_argument(
        "--budget",
        type=float,
        default=budget,
        metavar="SECONDS",
        help=f"time for all groups; default {budget:.0f}",
    )
    parser.add_argument("--rounds", type=int, default=40, help="most rounds of a group; default 40")
    parser.add_argument("--only", metavar="PATTERN", help="measure groups with this in their name")
    parser.add_argument("--list", action="store_true", help="list the groups and exit")
    parser.add_argument("--quick", action="store_true", help="test the script in a few seconds")
    parser.add_argument("--name", help="name of the machine, for the file; default its processor")
    parser.add_argument("--output", type=Path, help="default benchmarks/results/NAME-SCRIPT.json")
    parser.add_argument(
        "--force", action="store_true", help="replace results of another machine or setting"
    )
    return parser


def _run(script: str, plan: Plan, args: argparse.Namespace, apart: bool) -> int:
    check_device(args.device)
    for option in ("batch", "threads", "budget", "rounds"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            raise ValueError(f"--{option} must be positive, got {value}")
    if args.threads:
        torch.set_num_threads(args.threads)
    groups = plan(_options(args, apart))
    names = [group.name for group in groups]
    chosen = [group for group in groups if _asked(group.name, args.only)]
    if not chosen:
        raise ValueError(f"no group has {args.only!r} in its name; see --list")
    if args.list:
        print("\n".join(group.name for group in chosen))
        return 0
    document = new_document(
        script,
        command=_command(script, args),
        device=args.device,
        settings={"quick": args.quick},
    )
    record = Record(_path(script, args), document, force=args.force)
    print(f"{len(chosen)} groups in {_minutes(args)}; results: {record.path}", file=sys.stderr)
    start, progress = time.perf_counter(), show_progress()
    try:
        _measure(chosen, args, record, progress)
    except KeyboardInterrupt:
        progress.close()
        print(f"\nInterrupted: {record.path} has the groups above.", file=sys.stderr)
        return 130
    finally:
        progress.close()
    if not args.dtype:
        record.keep(names)
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes: {record.path}", file=sys.stderr)
    return 0


def _options(args: argparse.Namespace, apart: bool) -> Options:
    gpu = torch.device(args.device).type == "cuda"
    usual = ("bfloat16",) if gpu else ("float32",) if args.quick else ("float32", "bfloat16")
    return Options(
        device=args.device,
        dtypes=(args.dtype,) if args.dtype else usual,
        batch=args.batch or (2 if args.quick else default_batch(args.device)),
        compile=gpu and not args.quick if args.compile is None else args.compile,
        quick=args.quick,
        apart=apart and not gpu if args.apart is None else args.apart,
    )


def _path(script: str, args: argparse.Namespace) -> Path:
    if args.output:
        return Path(args.output)
    name = args.name or slug(describe_machine(args.device))
    # The times of a quick run mean nothing, so they are not written into the results.
    folder = Path(tempfile.gettempdir()) / "convattn-quick" if args.quick else RESULTS
    return folder / f"{name}-{script}.json"


def _command(script: str, args: argparse.Namespace) -> str:
    """Return the command that measures the whole file again."""
    words = ["python", "-m", f"benchmarks.{script}"]
    words += ["--quick"] if args.quick else []
    words += ["--device", args.device] if args.device != "cpu" else []
    for option in ("threads", "batch"):
        value = getattr(args, option)
        words += [f"--{option}", str(value)] if value else []
    if args.compile is not None:
        words.append("--compile" if args.compile else "--no-compile")
    if args.apart is not None:
        words.append("--apart" if args.apart else "--together")
    return shlex.join(words)


def _asked(name: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch.fnmatchcase(name, f"*{pattern}*")


def _minutes(args: argparse.Namespace) -> str:
    return "a few seconds" if args.quick else f"about {args.budget / 60:.1f} minutes"


def _measure(
    groups: list[Group], args: argparse.Namespace, record: Record, progress: Progress
) -> None:
    end = time.perf_counter() + args.budget
    peaks: dict[str, Peak] = {}
    for number, group in enumerate(groups, start=1):
        progress.group(group.name, number, len(groups))
        if group.dtype not in peaks:
            progress.say("measuring the machine's peak")
            seconds = 0.05 if args.quick else 2.0
            peaks[group.dtype] = measure_peak(group.device, DTYPES[group.dtype], seconds)
        share = group.weight / sum(other.weight for other in groups[number - 1 :])
        left = max(end - time.perf_counter(), 0.0) * share
        limits = Limits(rounds=args.rounds, least=min(args.rounds, 5), seconds=left)
        if args.quick:
            limits = Limits(rounds=2, least=2, warm=0)
        peak = peaks[group.dtype]
        result = run_group(group, limits=limits, peak=peak, progress=progress, keep_going=True)
        record.add(result)
        progress.done()
