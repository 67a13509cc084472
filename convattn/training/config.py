"""Settings of a training run that every task has, with default, meaning and checks."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from convattn.training.kinds import kinds_of

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Range = tuple[Positive, Positive]
Precision = Literal["auto", "32", "16-mixed", "bf16-mixed", "bf16-true", "64"]

_NOT_IN_MODEL_ARGS = {
    "num_classes": "the data decides the number of classes: leave it out",
    "in_chans": "write in_chans={value}",
    "pretrained": "write pretrained={value}",
    "name": "write model={value}",
    "model_name": "write model={value}",
}
_DATA_OPTIONS = (
    "json", "images", "classes", "ignored", "root", "download", "train_split", "val_split",
    "val_fraction", "split_seed", "max_broken", "value_range",
)  # fmt: skip
# Data of these kinds is named by a path, such as folder:pets.
WITH_PATH = ("folder", "coco", "voc", "yolo", "ade20k", "masks")


def setting(default: Any, text: str, example: Any = None) -> Any:
    """Return a field with a description, which ``--settings`` prints.

    Args:
        default: the default value.
        text: the meaning of the setting.
        example: a value for messages, where the default is None.
    """
    return Field(default, description=text, examples=None if example is None else [example])


class RunConfig(BaseModel):
    """The settings of a training run, of any task.

    ``model_fields_set`` holds the settings that the user gave, without those of a recipe.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    # Settings whose value is passed to the model, and the name of the model's argument.
    model_arguments: ClassVar[Mapping[str, str]] = {
        "img_size": "img_size",
        "drop_path": "drop_path_rate",
    }

    # Model and data
    task: str = setting("classification", "what the model is trained for")
    model: str = setting(..., "model, a name that `convattn models` or timm lists")
    model_args: dict[str, Any] = setting(
        {}, "further arguments of the model, such as model_args.depths=[1,1,2,1]"
    )
    pretrained: bool = setting(False, "start from the published weights of a timm model")
    init: str | None = setting(
        None,
        "start from the weights of this run or checkpoint; the head is new if the classes differ",
    )
    from_scratch: bool = setting(
        True, "false: random weights are an error, pretrained=true or init= must be set"
    )
    data: str = setting(..., "digits, folder:PATH or timm:NAME")
    root: str | None = setting(None, "timm data sets: folder that holds them")
    download: bool = setting(False, "timm data sets: download missing files")
    train_split: str = setting("train", "data sets in parts: name of the part to learn from")
    val_split: str = setting("validation", "data sets in parts: name of the held-out part")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.2, "data without a held-out part: share of the images that is held out"
    )
    split_seed: int = setting(0, "data without a held-out part: seed of the split")
    max_broken: Share = setting(
        0.01,
        "largest share of unreadable images, and of entries with problems, that is left out; a "
        "larger one is an error",
    )
    value_range: tuple[float, float] | None = setting(
        None,
        "float images and images of more than 8 bits: the value of black and the value of white; "
        "default: computed from all images and printed",
        example=(0, 65535),
    )
    img_size: Count | None = setting(
        None, "height and width of the input; default: those of the model"
    )
    in_chans: Literal[1, 3] | None = setting(
        None, "channels of the input, 1 for grey and 3 for colour; default: those of the data"
    )

    # Length of the training and size of its batches
    epochs: Count = setting(100, "passes over the training images")
    steps: Count | None = setting(
        None,
        "number of updates, in place of epochs, rounded up to epochs of equal length of at most "
        "one pass over the training images; in a recipe, epochs= replaces it",
    )
    batch_size: Count = setting(64, "images per batch and device")
    accumulate: Count = setting(1, "batches per update of the weights")

    # Optimiser
    opt: str = setting("adamw", "optimiser, a name that timm lists")
    lr: Positive = setting(1e-3, "learning rate")
    lr_batch: Count | None = setting(
        None,
        "images per update for which lr, warmup_lr and min_lr are set; training multiplies the "
        "three by the actual number over this number (see lr_growth); default: no scaling",
    )
    lr_growth: Literal["linear", "sqrt"] = setting(
        "linear", "factor of the learning rates under lr_batch: the ratio, or its square root"
    )
    momentum: ShareBelowOne = setting(0.9, "momentum, of optimisers that have one")
    opt_betas: tuple[ShareBelowOne, ShareBelowOne] | None = setting(
        None,
        "betas of Adam and similar optimisers; default: those of the optimiser",
        example=(0.9, 0.999),
    )
    weight_decay: NotNegative = setting(
        0.05, "weight decay; biases, norms and parameters that the model excludes have none"
    )
    layer_decay: PositiveShare | None = setting(
        None, "factor of the learning rate from each layer to the one before it"
    )
    clip_grad: NotNegative | None = setting(
        None, "largest norm of the gradient; null or 0: no clipping"
    )

    # Schedule
    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "constant"] = setting(
        "cosine", "schedule of the learning rate, stepped per update"
    )
    warmup_epochs: NotNegative = setting(
        5, "epochs of linear warm-up; unless you set it, at most a fifth of all epochs"
    )
    warmup_steps: CountOrZero | None = setting(
        None,
        "updates of linear warm-up in place of warmup_epochs, at most a fifth of all updates; with "
        "steps the default is 0",
    )
    warmup_lr: NotNegative = setting(1e-6, "learning rate at the start of the warm-up")
    min_lr: NotNegative = setting(1e-5, "learning rate at the end of the schedule")
    cooldown_epochs: CountOrZero = setting(
        0, "epochs at min_lr after the schedule, which `epochs` includes"
    )
    decay_epochs: Positive = setting(30, "step: epochs between two steps")
    decay_milestones: tuple[Count, ...] = setting(
        (30, 60, 90), "multistep: epochs after which the learning rate falls"
    )
    decay_steps: tuple[Count, ...] | None = setting(
        None,
        "multistep: updates after which the learning rate falls, in place of decay_milestones",
        example=(60000, 80000),
    )
    decay_rate: Positive = setting(0.1, "step and multistep: factor; poly: power")

    # Regularisation of the model
    drop_path: ShareBelowOne | None = setting(
        None, "rate of stochastic depth, or rates by model name; default: that of the model"
    )
    batch_norm: Literal["train", "eval", "frozen", "sync"] = setting(
        "train",
        "batch norms use the statistics of a batch (train), of all devices' batches (sync), or "
        "those of the initial weights (eval), then without training their weights (frozen)",
    )
    ema: bool = setting(False, "keep a moving average of the weights, which is evaluated and saved")
    ema_decay: ShareBelowOne = setting(0.9999, "decay of the average per update")
    ema_warmup: bool = setting(True, "smaller decay in the first updates")

    # Machine
    accelerator: str = setting("auto", "auto, cpu, gpu, mps and others of Lightning")
    devices: int | str = setting("auto", "number of devices, or such as 0,1; see Lightning")
    strategy: str = setting("auto", "auto, ddp and others of Lightning")
    precision: Precision = setting(
        "auto", "auto: bf16-mixed on GPUs with bfloat16 in hardware, 32 elsewhere"
    )
    channels_last: bool = setting(False, "memory layout of images and weights")
    compile: bool = setting(False, "compile the model with torch.compile")
    grad_checkpointing: bool = setting(
        False, "recompute feature maps in the backward pass: less memory, more time"
    )
    workers: CountOrZero | None = setting(
        None, "processes that load images; default: chosen by the data"
    )
    threads: Count | None = setting(None, "CPU threads of the model; default: those of PyTorch")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = setting(0, "seed of all random numbers")

    # Output
    runs: str = setting("runs", "folder of all runs")
    name: str | None = setting(None, "folder of this run; default: MODEL-DATA-NUMBER")
    tensorboard: bool = setting(True, "write TensorBoard events")
    checkpoint_minutes: NotNegative = setting(
        10, "minutes between two checkpoints within an epoch; 0: only after epochs"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, values: Any) -> Any:
        """Turn integers and paths that are given for text settings into texts."""
        if not isinstance(values, dict):
            return values
        return {key: _as_text(value, cls.model_fields.get(key)) for key, value in values.items()}

    @model_validator(mode="before")
    @classmethod
    def _of_this_model(cls, values: Any) -> Any:
        """Select the value for this model where a recipe gives values by name of the model.

        A name may have the wildcards of file names, and may be that of a method. The first name
        that fits is used; without one, ``drop_path`` is None.
        """
        if not isinstance(values, dict):
            return values
        names = [
            str(values.get(key, cls.model_fields[key].default))
            for key in ("model", "method")
            if key in cls.model_fields
        ]
        return {
            key: _chosen(key, value, names)
            if _is_by_name(value, cls.model_fields.get(key))
            else value
            for key, value in values.items()
        }

    @field_validator("*", mode="before")
    @classmethod
    def _is_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Raise an error for values that only Python reads as numbers: true as 1, 1_000 as 1000."""
        kinds = kinds_of(cls.model_fields[str(info.field_name)].annotation)
        is_number = bool(kinds & {int, float, tuple}) and not kinds & {str, bool}
        items = value if isinstance(value, list | tuple) else [value]
        if is_number and any(isinstance(x, bool) or "_" in str(x) for x in items):
            raise ValueError("must be a number, such as 1000 or 1e-3")
        return value

    @field_validator("data")
    @classmethod
    def _absolute_folder(cls, data: str) -> str:
        """Make a path absolute, for a resumed run in another working directory."""
        kind, colon, path = data.partition(":")
        if kind not in WITH_PATH or not path:
            return data
        return kind + colon + str(Path(path).expanduser().absolute())

    @field_validator("accelerator")
    @classmethod
    def _lower_case(cls, accelerator: str) -> str:
        return accelerator.lower()

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if not self.from_scratch and not (self.pretrained or self.init):
            raise ValueError(
                "from_scratch=false needs weights to start from: add init=RUN_OR_CHECKPOINT, or "
                "pretrained=true for a model whose weights timm downloads"
            )
        return self

    @model_validator(mode="after")
    def _check_one_start(self) -> Self:
        if self.pretrained and self.init:
            raise ValueError(
                f"pretrained=true and init={self.init} contradict each other; set pretrained=false "
                "or init=null"
            )
        return self

    @model_validator(mode="after")
    def _check_value_range(self) -> Self:
        if self.value_range is not None:
            from convattn.data import check_range  # imports torch

            check_range(self.value_range)
        return self

    @model_validator(mode="after")
    def _check_model_args(self) -> Self:
        for name, value in self.model_args.items():
            if name in _NOT_IN_MODEL_ARGS:
                fix = _NOT_IN_MODEL_ARGS[name].format(value=value)
                raise ValueError(f"model_args.{name}={value} is not possible; {fix}")
        for key, name in self.model_arguments.items():
            value, other = getattr(self, key), self.model_args.get(name)
            if value is not None and name in self.model_args and other != value:
                raise ValueError(
                    f"{key}={value} and model_args.{name}={other} contradict each other; "
                    f"set {key} alone"
                )
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        in_epochs = self.warmup_steps is None and self.steps is None
        warmup = self.warmup_epochs if in_epochs else 0
        if self.steps is None and warmup + self.cooldown_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs={warmup:g} and cooldown_epochs={self.cooldown_epochs} "
                f"do not fit into epochs={self.epochs}; lower them or train longer"
            )
        rates = {"min_lr": self.min_lr, "warmup_lr": self.warmup_lr}
        above = {key: rate for key, rate in rates.items() if rate > self.lr}
        if self.sched != "constant" and above:
            given = " and ".join(f"{key}={rate:g}" for key, rate in above.items())
            fix = " ".join(f"{key}=0" for key in above)
            raise ValueError(f"{given} must not be above lr={self.lr:g}; add {fix}")
        return self

    @model_validator(mode="after")
    def _check_milestones(self) -> Self:
        for key in ("decay_milestones", "decay_steps"):
            values = list(getattr(self, key) or ())
            if values != sorted(set(values)):
                raise ValueError(f"{key}={values} must rise; write {key}={sorted(set(values))}")
        if self.sched == "multistep" and (self.steps is not None or self.decay_steps is None):
            self._check_last_milestone()
        return self

    def _check_last_milestone(self) -> None:
        """Raise `ValueError` unless the milestones are before the end of the schedule."""
        if self.steps is None:
            key, end, unit = "decay_milestones", self.epochs - self.cooldown_epochs, "epoch"
        else:
            key, end, unit = "decay_steps", self.steps, "update"
        milestones = getattr(self, key) or ()
        if not milestones or milestones[-1] >= end:
            raise ValueError(
                f"{key}={list(milestones)} must name {unit}s before the end of the "
                f"schedule, {unit} {end}, for sched=multistep; set them, or another sched"
            )

    @property
    def targets(self) -> str:
        """What the data says on an image: "classes", "boxes", "instances" or "segments"."""
        return "classes"

    @classmethod
    def default_recipe(cls, values: Mapping[str, Any]) -> str | None:
        """Return the recipe for settings without a recipe; None for the default values."""
        return None


def data_options(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of `open_dataset` except the name; "classes" are its default targets."""
    known = [key for key in _DATA_OPTIONS if key in type(config).model_fields]
    targets = {} if config.targets == "classes" else {"targets": config.targets}
    return {**targets, **{key: getattr(config, key) for key in known}}


def path_of(data: str) -> Path | None:
    """Return the path in the name of a data set, None if the name has no path."""
    kind, _, path = data.partition(":")
    return Path(path).expanduser() if kind in WITH_PATH and path else None


def _is_by_name(value: Any, field: Any) -> bool:
    """Return whether a value is a mapping from names of models, for a setting that is none."""
    return isinstance(value, dict) and field is not None and dict not in kinds_of(field.annotation)


def _chosen(key: str, values: dict[Any, Any], names: list[str]) -> Any:
    for pattern, value in values.items():
        if any(fnmatch.fnmatchcase(name, str(pattern)) for name in names):
            return value
    return None if key == "drop_path" else values


def _as_text(value: Any, field: Any) -> Any:
    kinds = set() if field is None else kinds_of(field.annotation)
    if str not in kinds:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number and int not in kinds else value
