"""Measure how fast a large COCO data set is opened, and the memory of a process that loads it.

python -m benchmarks.coco_index --out /tmp/coco
python -m benchmarks.coco_index --out /tmp/coco --images 2000 --objects 15000

It writes a generated annotation file of the size of COCO's train2017, with polygons, and links to
one image as its images; measures the first opening, the later ones and the private memory of a
loading process that reads all targets; and writes the results to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import RESULTS
from convattn.bench.machine import slug
from convattn.bench.record import new_document
from convattn.data import ImageSet, Targets, open_dataset

IMAGES, OBJECTS, CATEGORIES = 118_000, 860_000, 80
_SIZE = (640, 480)
_POINTS = 30  # of a polygon, on average about as many as in COCO
_CROWD = 0.01  # share of the objects that are crowds with run lengths
_BOXES, _MASKS = 20_000, 100  # images whose boxes and whose masks are read


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, measure, print and write the results; return the exit status."""
    args = _parser().parse_args(argv)
    file = write_large(args.out, args.images, args.objects)
    os.environ["CONVATTN_CACHE"] = str(args.out / "cache")
    for old in (args.out / "cache").glob("*.index"):
        old.unlink()
    found = _measure(f"coco:{args.out}", args.rounds)
    document = new_document(
        "coco_index",
        command=f"python -m benchmarks.coco_index --out coco --images {args.images} "
        f"--objects {args.objects}",
        device="cpu",
        settings={"images": args.images, "objects": args.objects, "bytes": file.stat().st_size},
    )
    document |= found
    path = args.output or RESULTS / f"{slug(document['machine'])}-coco-index.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    print(f"results: {path}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coco_index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the generated files")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"default {IMAGES}")
    parser.add_argument("--objects", type=int, default=OBJECTS, help=f"default {OBJECTS}")
    parser.add_argument("--rounds", type=int, default=3, help="later openings; default 3")
    parser.add_argument(
        "--output", type=Path, help="default benchmarks/results/NAME-coco-index.json"
    )
    return parser


def write_large(root: Path, images: int, objects: int) -> Path:
    """Write an annotation file with this many images and objects, and return it.

    An earlier file of the same numbers is kept. The images are links to one image.
    """
    file = root / "annotations" / "instances_train2017.json"
    folder, marker = root / "train2017", root / f"{images}-{objects}"
    if marker.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", _SIZE).save(root / "image.jpg")
    entries = []
    for number in range(1, images + 1):
        name = f"{number:012}.jpg"
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(root.absolute() / "image.jpg")
        entries.append({"id": number, "file_name": name, "width": _SIZE[0], "height": _SIZE[1]})
    categories = [{"id": n * 9 // 8 + 1, "name": f"class {n}"} for n in range(CATEGORIES)]
    with file.open("w") as out:
        out.write(f'{{"images": {json.dumps(entries)}, "categories": {json.dumps(categories)}, ')
        out.write('"annotations": [')
        random = np.random.default_rng(0)
        for number in range(objects):
            entry = _annotation(random, number, images, categories)
            out.write(("," if number else "") + json.dumps(entry))
        out.write("]}")
    marker.touch()
    return file


def _annotation(
    random: np.random.Generator, number: int, images: int, categories: list[dict[str, Any]]
) -> dict[str, Any]:
    width, height = (random.integers(20, side // 2) for side in _SIZE)
    x, y = (int(random.integers(0, s - t)) for s, t in zip(_SIZE, (width, height), strict=True))
    entry: dict[str, Any] = {
        "id": number,
        "image_id": int(random.integers(1, images + 1)),
        "category_id": categories[int(random.integers(CATEGORIES))]["id"],
        "bbox": [x, y, int(width), int(height)],
        "area": float(width * height) / 2,
        "iscrowd": 0,
    }
    if random.random() < _CROWD:
        runs = [y + x * _SIZE[1], *[int(height), _SIZE[1] - int(height)] * int(width)]
        counts = [*runs, _SIZE[0] * _SIZE[1] - sum(runs)]
        return {
            **entry,
            "iscrowd": 1,
            "segmentation": {"size": [_SIZE[1], _SIZE[0]], "counts": counts},
        }
    count = int(random.integers(3, 2 * _POINTS))
    points = random.random((count, 2)) * (width, height) + (x, y)
    return {**entry, "segmentation": [points.round(2).ravel().tolist()]}


def _measure(name: str, rounds: int) -> dict[str, Any]:
    """Return times and memory in MB; each opening is in a process of its own.

    On a busy machine the CPU seconds are those of the opening, the others are not.
    """
    first = _apart(_opening, name)
    later = [_apart(_opening, name) for _ in range(rounds)]
    kinds: tuple[Targets, Targets] = ("boxes", "instances")
    boxes, masks = (open_dataset(name, targets=kind) for kind in kinds)
    return {
        "first_opening": first,
        "later_openings": later,
        "loading_process": {
            method: _apart(_loading, boxes.train, masks.train, method=method)
            for method in ("fork", "spawn")
        },
    }


def _apart(work: Any, *arguments: Any, method: str = "spawn") -> Any:
    """Return the result of a function in a process of its own."""
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def _send(sender: Any, work: Any, arguments: Sequence[Any]) -> None:
    sender.send(work(*arguments))


def _opening(name: str) -> dict[str, float]:
    import resource

    start, cpu = time.perf_counter(), time.process_time()
    open_dataset(name, targets="instances")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "private_mb": _private()}


def _loading(boxes: ImageSet, masks: ImageSet) -> dict[str, float]:
    """Return the private memory that reading all boxes and some masks adds to a process."""
    before = _private()
    for images, most in ((boxes, _BOXES), (masks, _MASKS)):
        for index in range(min(most, len(images))):
            images.target(index)
    return {"before_mb": before, "added_mb": _private() - before}


def _private() -> float:
    """Return the memory in MB that this process shares with no other, with maps of files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1000


if __name__ == "__main__":
    sys.exit(main())
