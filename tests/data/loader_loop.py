"""A program that loads batches and survives signals: python -m tests.data.loader_loop METHOD.

It prints "start", the numbers of its loading processes, a line per batch, "end", and which signals
it has received.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convattn.data import Batch, is_lost_worker, train_loader
from convattn.data.source import ArrayImages

BATCHES, EPOCHS = 5, 2


def slow(image: Image.Image, target: Any) -> tuple[Tensor, Any]:
    """Load longer than a signal takes."""
    time.sleep(0.1)
    return torch.from_numpy(np.array(image))[None].float(), target


def batches(side: int) -> Iterator[Batch]:
    """Load two epochs on two processes."""
    images = ArrayImages(np.zeros((2 * BATCHES, side, side), np.uint8), list(range(2 * BATCHES)))
    loader = train_loader(images, slow, batch_size=2, workers=2)
    for _ in range(EPOCHS):
        yield from loader


def loop(side: int) -> None:
    """Print what is loaded, and how loading ended."""
    try:
        load(side)
    except Exception as error:
        print("lost" if is_lost_worker(error) else "error", repr(error), flush=True)
    else:
        print("end", flush=True)


def load(side: int) -> None:
    """Print the number of each batch."""
    for number, batch in enumerate(batches(side)):
        if number == 0:
            print("workers", *(p.pid for p in multiprocessing.active_children()), flush=True)
        print("batch", batch["index"].tolist(), flush=True)


def main(method: str, where: str = "main", side: str = "4") -> None:
    """Loop with handlers that only note the signal."""
    multiprocessing.set_start_method(method)
    seen: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: seen.append(number))
    print("start", flush=True)
    if where == "thread":
        thread = threading.Thread(target=loop, args=[int(side)])
        thread.start()
        thread.join()
    else:
        loop(int(side))
    print("seen", *sorted(set(map(int, seen))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
