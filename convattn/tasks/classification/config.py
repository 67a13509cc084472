"""Every setting of a training run, with its default, its meaning and its check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[Positive, Positive]
Precision = Literal["auto", "32", "16-mixed", "bf16-mixed", "bf16-true", "64"]


def _doc(default: Any, text: str) -> Any:
    return Field(default, description=text)


class TrainConfig(BaseModel):
    """The settings of one training run; `describe` prints them with their meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # What to train, on what
    model: str = _doc("glnet_nano", "model, as `convattn models` or timm lists it")
    model_args: dict[str, Any] = _doc({}, "further arguments of the model: model_args.depths=[1,1]")
    pretrained: bool = _doc(False, "start from the model's published weights (timm's models)")
    init: str | None = _doc(None, "start from this checkpoint's weights; a new head where needed")
    from_scratch: bool = _doc(True, "false: insist on `pretrained` or `init`")
    data: str = _doc("digits", "digits, folder:PATH or timm:NAME")
    root: str | None = _doc(None, "timm's data sets: where they are stored")
    download: bool = _doc(False, "timm's data sets: fetch what is missing")
    train_split: str = _doc("train", "timm's data sets: the part to learn from")
    val_split: str = _doc("validation", "timm's data sets: the part held out")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = _doc(
        0.2, "folders without a held-out part: the share to hold out"
    )
    split_seed: int = _doc(0, "folders without a held-out part: which split")
    max_broken: Share = _doc(0.01, "the share of unreadable images that is skipped, not an error")
    value_range: tuple[FiniteFloat, FiniteFloat] | None = _doc(
        None,
        "float images and those of more than 8 bits: the values that become black and white; "
        "default: decided from all images, and told",
    )
    img_size: Count | None = _doc(None, "height and width of the input; default: the model's")
    in_chans: Literal[1, 3] | None = _doc(None, "1 grey, 3 colour; default: as the data")
    crop_pct: Share | None = _doc(None, "evaluation: the share the centre crop keeps")
    crop_mode: Literal["center", "squash", "border"] | None = _doc(
        None,
        "evaluation: cut the middle out, or keep all of a long image, stretched to a square "
        "(squash) or with borders; default: the model's",
    )

    # How long, in what portions
    epochs: Count = _doc(100, "passes over the training images")
    batch_size: Count = _doc(64, "images per batch and device")
    accumulate: Count = _doc(1, "batches per update of the weights")
    repeats: Count = _doc(1, "repeated augmentation: copies of an image in an epoch")

    # Optimiser
    opt: str = _doc("adamw", "optimiser, by timm's name")
    lr: Positive = _doc(1e-3, "learning rate")
    lr_batch: Count | None = _doc(
        None,
        "images per update that lr, warmup_lr and min_lr hold for; they grow with the number "
        "that is used. Default: they are used as they stand",
    )
    lr_growth: Literal["linear", "sqrt"] = _doc("linear", "how they grow")
    momentum: Share = _doc(0.9, "of optimisers that have one")
    opt_betas: tuple[Share, Share] | None = _doc(None, "of Adam and its kin; default: its own")
    weight_decay: NotNegative = _doc(0.05, "not for biases, norms and what the model excludes")
    layer_decay: Share | None = _doc(None, "lower learning rates towards the input")
    clip_grad: NotNegative | None = _doc(None, "largest norm of the gradient")

    # Schedule
    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "constant"] = _doc(
        "cosine", "schedule of the learning rate, stepped per update"
    )
    warmup_epochs: NotNegative = _doc(
        5, "epochs of linear warm-up; unless set, at most a fifth of all"
    )
    warmup_lr: NotNegative = _doc(1e-6, "learning rate at the start of it")
    min_lr: NotNegative = _doc(1e-5, "learning rate at the end")
    cooldown_epochs: Annotated[int, Field(ge=0)] = _doc(0, "epochs at min_lr, of the `epochs`")
    decay_epochs: Positive = _doc(30, "step: epochs between two steps")
    decay_milestones: tuple[Count, ...] = _doc((30, 60, 90), "multistep: after which epochs")
    decay_rate: Positive = _doc(0.1, "step and multistep: factor; poly: power")

    # Augmentation
    scale: Range = _doc((0.08, 1.0), "share of the area that a random crop keeps")
    ratio: Range = _doc((0.75, 1.3333), "width over height of that crop")
    hflip: Share | None = _doc(None, "probability of mirroring; default: 0.5 if the data allows")
    vflip: Share = _doc(0.0, "probability of turning upside down")
    color_jitter: NotNegative = _doc(0.4, "change of colours, where auto_augment is off")
    auto_augment: str | None = _doc(None, "timm's policy, such as rand-m9-mstd0.5-inc1")
    erasing: Share = _doc(0.0, "probability of erasing a rectangle")
    degrees: NotNegative = _doc(0.0, "largest random rotation")
    translate: Share = _doc(0.0, "largest random shift, as a share of the image")
    zoom: Range = _doc((1.0, 1.0), "random magnification")
    shear: NotNegative = _doc(0.0, "largest random shear, in degrees")
    mixup: NotNegative = _doc(0.0, "mixup's alpha")
    cutmix: NotNegative = _doc(0.0, "CutMix's alpha")
    mixup_prob: Share = _doc(1.0, "probability of either")
    mixup_switch_prob: Share = _doc(0.5, "probability of CutMix where both are on")
    mixup_off_epoch: Annotated[int, Field(ge=0)] = _doc(0, "epoch that ends both; 0: never")

    # Loss and regularisation
    loss: Literal["ce", "bce"] = _doc("ce", "cross-entropy, or one binary one per class")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = _doc(0.1, "label smoothing")
    drop: Annotated[float, Field(ge=0, lt=1)] | None = _doc(None, "dropout before the head")
    drop_path: Share | None = _doc(
        None, "stochastic depth: a rate, or rates by model; default: the model's"
    )
    ema: bool = _doc(False, "average the weights; the average is evaluated and kept")
    ema_decay: Share = _doc(0.9999, "the average's decay per update")
    ema_warmup: bool = _doc(True, "a faster average in the beginning")

    # Machine
    accelerator: str = _doc("auto", "Lightning's: auto, cpu, gpu, mps ...")
    devices: int | str = _doc("auto", "Lightning's: how many devices")
    strategy: str = _doc("auto", "Lightning's: ddp ...")
    precision: Precision = _doc("auto", "auto: bf16-mixed on GPUs that have it, 32 elsewhere")
    channels_last: bool = _doc(False, "memory layout of images and weights")
    compile: bool = _doc(False, "torch.compile the model")
    grad_checkpointing: bool = _doc(False, "less memory, more time")
    workers: Annotated[int, Field(ge=0)] | None = _doc(None, "loading processes; default: by data")
    threads: Count | None = _doc(None, "CPU threads of the model; default: PyTorch's choice")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = _doc(0, "of everything random")

    # Where to write
    runs: str = _doc("runs", "folder of all runs")
    name: str | None = _doc(None, "folder of this run; default: MODEL-DATA-NUMBER")
    tensorboard: bool = _doc(True, "write TensorBoard events")

    @field_validator("data")
    @classmethod
    def _absolute_folder(cls, data: str) -> str:
        """Keep where a folder is: a run is evaluated and resumed from anywhere."""
        kind, colon, path = data.partition(":")
        if kind != "folder" or not path:
            return data
        return kind + colon + str(Path(path).expanduser().absolute())

    @model_validator(mode="before")
    @classmethod
    def _rate_of_this_model(cls, values: Any) -> Any:
        """A recipe for a family names each member's drop path: keep this model's."""
        rates = values.get("drop_path") if isinstance(values, dict) else None
        if not isinstance(rates, dict):
            return values
        model = values.get("model", cls.model_fields["model"].default)
        return {**values, "drop_path": rates.get(model)}

    @model_validator(mode="after")
    def _fit_together(self) -> TrainConfig:
        if not self.from_scratch and not (self.pretrained or self.init):
            raise ValueError(
                "this recipe starts from trained weights: add init=RUN_DIR_OR_CHECKPOINT, or "
                "pretrained=true for a model that timm has weights for"
            )
        if (self.mixup or self.cutmix) and self.batch_size < 2:
            raise ValueError(
                f"mixup and CutMix mix two images of a batch, got batch_size={self.batch_size}; "
                "make it 2 or more, or set both to 0"
            )
        if self.warmup_epochs + self.cooldown_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} and cooldown_epochs={self.cooldown_epochs} "
                f"do not fit into epochs={self.epochs}; lower them or train longer"
            )
        if self.sched != "constant" and max(self.min_lr, self.warmup_lr) > self.lr:
            raise ValueError(
                f"min_lr={self.min_lr:g} and warmup_lr={self.warmup_lr:g} must not be above "
                f"lr={self.lr:g}; lower them, to 0 if in doubt"
            )
        if self.value_range is not None:
            from convattn.data import check_range  # imports torch

            check_range(self.value_range)
        for key in ("scale", "ratio", "zoom"):
            least, most = getattr(self, key)
            if least > most:
                raise ValueError(f"{key} is (least, most), got [{least}, {most}]")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the area, at most 1, got {self.scale[1]}")
        return self


def describe() -> str:
    """Return every setting as "name=default" with its meaning below."""
    return "\n".join(
        f"  {key}={_yaml(field.default)}\n      {field.description}"
        for key, field in TrainConfig.model_fields.items()
    )


def _yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()
