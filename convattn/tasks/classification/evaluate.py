"""How good a checkpoint is on a data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convattn.checks import check_choice
from convattn.data import (
    READABLE,
    DataSource,
    ImageOnly,
    ImageSet,
    Joined,
    check_share,
    default_workers,
    eval_loader,
    eval_transform,
    reread,
    shown,
)
from convattn.tasks.classification.checkpoint import (
    Checkpoint,
    ModelCard,
    load_checkpoint,
)
from convattn.tasks.classification.run_folder import write_csv, write_json
from convattn.tasks.classification.trained_data import open_for, range_notes

Split = Literal["auto", "train", "val", "all"]
PREDICTION_COLUMNS = ("index", "path", "label", "predicted", "probability", "label_probability")


@dataclass(frozen=True)
class ClassResult:
    """The images of one class and the share of them that was recognised; None without images."""

    name: str
    images: int
    accuracy: float | None


@dataclass(frozen=True)
class Prediction:
    """What the model said about one image."""

    index: int
    path: str
    label: int
    predicted: int
    probability: float
    label_probability: float


@dataclass(frozen=True)
class Evaluation:
    """What was found. ``confusion[true][predicted]`` counts images; shares are in 0..1.

    ``notes`` are the data set's: which part is held out, which files were passed over.
    """

    model: str
    data: str
    split: str
    num_classes: int
    class_names: list[str]
    images: int
    top1: float
    top5: float
    loss: float
    images_per_second: float
    per_class: list[ClassResult]
    confusion: list[list[int]]
    parameters: int
    broken: list[str]
    predictions: list[Prediction]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single predictions, as plain values."""
        values = asdict(self)
        del values["predictions"]
        return values

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``predictions.csv``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "evaluation.json", self.to_dict())
        rows = [
            {key: _short(value) for key, value in asdict(line).items()} for line in self.predictions
        ]
        write_csv(folder / "predictions.csv", PREDICTION_COLUMNS, rows)


def evaluate(
    checkpoint: str | Path | Checkpoint,
    data: str | DataSource | None = None,
    *,
    split: Split = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device = "auto",
    max_broken: float = 0.01,
    **data_options: Any,
) -> Evaluation:
    """Evaluate a checkpoint.

    Args:
        checkpoint: a run folder, a file, or what `load_checkpoint` returned.
        data: a name as for `open_dataset`, or an open `DataSource`; by default what the model was
            trained on. Float and deep images are read with the checkpoint's ``value_range``; where
            it keeps none, integers of a named data set are read as 0 to 65535.
        split: "val", "train" or "all" images. "auto" is the held-out part; of a folder without
            one it is all images, unless the model was trained on this very folder.
        batch_size: images at a time; the result does not depend on it.
        workers: loading processes.
        device: "auto" takes a GPU if there is one.
        max_broken: the share of unreadable images that is left out, not an error.
        **data_options: further arguments of `open_dataset`.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: the data has classes that the checkpoint does not know, or too many images
            that cannot be read.
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    check_choice("split", split, ("auto", "train", "val", "all"))
    if not isinstance(data, DataSource):
        options = {**data_options, "max_broken": max_broken}
        data = _open(loaded.card, data or loaded.card.data, options)
    elif loaded.card.value_range is not None and loaded.card.value_range != data.value_range:
        data = data.scaled(loaded.card.value_range)
    check_classes(loaded, data)
    images, part = _choose(data, split, loaded.card)
    place = best_device(device)
    loader = eval_loader(
        images,
        ImageOnly(eval_transform(loaded.card.preprocess)),
        batch_size=batch_size,
        workers=default_workers(images) if workers is None else workers,
        pin_memory=place.type == "cuda",
    )
    found = _run(loaded.model, loader, place)
    broken = reread(images, found.broken)
    check_share(broken, len(images), max_broken, data.name)
    skipped = [file.path for file in (*data.broken, *broken)]
    return _summarise(loaded, data, images, part, found, skipped)


def check_classes(checkpoint: Checkpoint, data: DataSource) -> None:
    """Raise `ValueError` unless the data has exactly the checkpoint's classes."""
    known, given = checkpoint.card.class_names, data.class_names
    if known == given:
        return
    if len(known) != len(given):
        raise ValueError(
            f"{checkpoint.path} knows {len(known)} classes ({_listed(known)}), but {data.name} has "
            f"{len(given)} ({_listed(given)}); evaluate on data of the same classes, or adapt the "
            "model to them: convattn train --recipe finetune init=CHECKPOINT"
        )
    number = next(i for i, (a, b) in enumerate(zip(known, given, strict=True)) if a != b)
    raise ValueError(
        f"{checkpoint.path} and {data.name} name their classes differently: class {number} is "
        f"'{shown(known[number])}' for the checkpoint and '{shown(given[number])}' in the data"
    )


def best_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device: a GPU if there is one, unless another is asked for."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _open(card: ModelCard, name: str, options: dict[str, Any]) -> DataSource:
    """The data set, split as in training if it is the same."""
    before = card.data_options if _is_same(name, card.data) else {}
    return open_for(card, name, **{**before, "value_range": None, **options})


def _choose(data: DataSource, split: Split, card: ModelCard) -> tuple[ImageSet, str]:
    if split == "auto":
        is_new = data.split_here and not _is_same(data.name, card.data)
        split = "all" if is_new else "val"
    if split == "all":
        return Joined(data.train, data.val), split
    return (data.train if split == "train" else data.val), split


def _is_same(name: str, other: str) -> bool:
    """Whether two names of data sets mean the same; folders may be written in several ways."""
    if not (name.startswith("folder:") and other.startswith("folder:")):
        return name == other
    first, second = (Path(n.removeprefix("folder:")).expanduser().resolve() for n in (name, other))
    return first == second


@dataclass(frozen=True)
class _Found:
    """Scores, labels and numbers of the readable images, the numbers of the others, the speed."""

    scores: Tensor
    labels: Tensor
    numbers: Tensor
    broken: list[int]
    images_per_second: float


@torch.inference_mode()
def _run(model: nn.Module, loader: Any, device: torch.device) -> _Found:
    model = model.to(device).eval()
    scores, labels, numbers, broken, times = [], [], [], [], [time.perf_counter()]
    for batch in loader:
        readable = batch["status"] == READABLE
        found = model(batch["image"].to(device, non_blocking=True)).float().cpu()
        scores.append(found[readable])
        labels.append(batch["target"][readable])
        numbers.append(batch["index"][readable])
        broken += batch["index"][~readable].tolist()
        times.append(time.perf_counter())
    speed = _speed([len(part) for part in scores], times)
    return _Found(torch.cat(scores), torch.cat(labels), torch.cat(numbers), broken, speed)


def _speed(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Images per second after the first batch, which waits for processes to start; or all there is.

    ``times`` has the start, then the end of each batch of ``sizes``.
    """
    first = 1 if len(sizes) > 1 else 0
    return sum(sizes[first:]) / max(times[-1] - times[first], 1e-9)


def _summarise(
    loaded: Checkpoint,
    data: DataSource,
    images: ImageSet,
    split: str,
    found: _Found,
    skipped: list[str],
) -> Evaluation:
    classes = data.num_classes
    scores, labels = found.scores, found.labels
    probabilities = scores.softmax(-1)
    best = scores.topk(min(5, classes)).indices
    hits = best == labels[:, None]
    confusion = torch.bincount(labels * classes + best[:, 0], minlength=classes**2)
    confusion = confusion.view(classes, classes)
    return Evaluation(
        model=loaded.card.model,
        data=data.name,
        split=split,
        num_classes=classes,
        class_names=list(data.class_names),
        images=len(labels),
        top1=hits[:, 0].float().mean().item(),
        top5=hits.any(-1).float().mean().item(),
        loss=F.cross_entropy(scores, labels).item(),
        images_per_second=found.images_per_second,
        per_class=_per_class(data.class_names, confusion),
        confusion=confusion.tolist(),
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        broken=skipped,
        predictions=_predictions(images, found, probabilities, best[:, 0]),
        notes=[*data.notes, *range_notes(loaded.card, data.value_range)],
    )


def _predictions(
    images: ImageSet, found: _Found, probabilities: Tensor, best: Tensor
) -> list[Prediction]:
    rows = torch.arange(len(best))
    columns = (
        found.numbers.tolist(),
        found.labels.tolist(),
        best.tolist(),
        probabilities[rows, best].tolist(),
        probabilities[rows, found.labels].tolist(),
    )
    return [
        Prediction(number, images.path(number), *rest)
        for number, *rest in zip(*columns, strict=True)
    ]


def _per_class(names: Sequence[str], confusion: Tensor) -> list[ClassResult]:
    counts, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    return [
        ClassResult(name, count, hit / count if count else None)
        for name, count, hit in zip(names, counts, right, strict=True)
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:5])) + (", ..." if len(names) > 5 else "")


def _short(value: Any) -> Any:
    return f"{value:.6f}" if isinstance(value, float) else value
