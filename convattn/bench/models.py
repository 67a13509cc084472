"""Models as computations to measure: evaluation in the deployed form, or a training step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.bench.cases import Built, Case
from convattn.bench.deployed import count_norms, deploy, randomize
from convattn.models import count_macs, count_parameters, create_model, list_models

_PROOF_SIZE = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """How models are run; all models of a comparison have the same setting."""

    size: tuple[int, int]
    batch: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    train: bool = False
    compile: bool = False
    deployed: bool = True  # evaluate the deployed form, not the trained form

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for JSON; device and type are stored with the group."""
        return {
            "mode": "training step" if self.train else "evaluation",
            "batch": self.batch,
            "size": list(self.size),
            "compile": self.compile,
            "form": "deployed" if self.deployed and not self.train else "trained",
            "layout": "channels-last",
            "weights": "random",
            **({"optimizer": "AdamW, fused"} if self.train else {}),
        }


def default_batch(device: str) -> int:
    """Return the default number of images per call."""
    return 128 if torch.device(device).type == "cuda" else 8


def check_device(device: str) -> str:
    """Return the device if this machine has it.

    Raises:
        ValueError: the name is unknown, or the machine has no such device.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError(
                f"device {device!r}: PyTorch {torch.__version__} sees no GPU here; use 'cpu'; "
                "`convattn doctor` shows the devices"
            )
        if (torch.device(device).index or 0) >= count:
            raise ValueError(f"device {device!r}: there are {count} GPUs, numbered from 0")
    return device


def own_size(name: str) -> tuple[int, int]:
    """Return height and width of a model's default input."""
    with torch.device("meta"):
        cfg: Any = create_model(name).pretrained_cfg
    height, width = cfg["input_size"][1:]
    return height, width


def model_case(name: str, setting: Setting) -> Case:
    """Return a model as a computation.

    The model is built later, and a wrong name or size raises an error then.

    Args:
        name: a name of this package's registry, or of timm's.
        setting: how to run the model.
    """
    return Case(
        name=name,
        build=partial(_training if setting.train else _evaluation, name, setting),
        images=setting.batch,
        macs=partial(_macs_of_call, name, setting),
    )


def _macs_of_call(name: str, setting: Setting) -> int:
    # A backward pass has twice as many: for the gradients of the inputs and of the weights.
    return _macs(name, setting.size) * setting.batch * (3 if setting.train else 1)


@cache
def _macs(name: str, size: tuple[int, int]) -> int:
    with torch.device("meta"):
        model = build_model(name, size)
    return count_macs(model, (3, *size))


def build_model(name: str, size: tuple[int, int]) -> nn.Module:
    """Build a model for images of a size; timm's fixed-size models get it as ``img_size``."""
    model = create_model(name)
    cfg: Any = getattr(model, "pretrained_cfg", {})
    if tuple(cfg["input_size"][1:]) == tuple(size) or not cfg.get("fixed_input_size"):
        return model
    try:
        return create_model(name, img_size=size)
    except (TypeError, AssertionError) as error:
        height, width = cfg["input_size"][1:]
        raise ValueError(
            f"{name} takes images of {height}x{width} pixels only, got {size[0]}x{size[1]}"
        ) from error


def _evaluation(name: str, setting: Setting) -> Built:
    torch.manual_seed(0)
    model = build_model(name, setting.size)
    # The images that check the folding are small if the network supports any size.
    fixed = getattr(model, "pretrained_cfg", {}).get("fixed_input_size")
    size = setting.size if fixed else [min(side, _PROOF_SIZE) for side in setting.size]
    model = randomize(model, torch.randn(2, 3, *size))
    note, macs, details = "", None, {"parameters": count_parameters(model)}
    if setting.deployed:
        model = deploy(model, torch.randn(1, 3, *size), ours=name in list_models())
        macs = count_macs(model, (3, *setting.size)) * setting.batch
        left = count_norms(model)
        note = f"{left} batch norms follow no layer that they could be folded into" if left else ""
    dtype = DTYPES[setting.dtype]
    model = model.to(setting.device, dtype).to(memory_format=torch.channels_last)
    images = _images(setting, dtype)
    run: Any = torch.compile(model) if setting.compile else model

    def call() -> Tensor:
        with torch.inference_mode():
            result: Tensor = run(images)
            return result

    return Built(call, macs=macs, note=note, details=details)


def _training(name: str, setting: Setting) -> Built:
    torch.manual_seed(0)
    model = build_model(name, setting.size).train()
    model = model.to(setting.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=True)
    images = _images(setting, torch.float32)
    labels = torch.randint(1000, (setting.batch,), device=setting.device)
    run: Any = torch.compile(model) if setting.compile else model
    half = setting.dtype != "float32"
    autocast = torch.autocast(
        torch.device(setting.device).type, dtype=DTYPES[setting.dtype], enabled=half
    )

    def call() -> None:
        with autocast:
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Built(call, details={"parameters": count_parameters(model)})


def _images(setting: Setting, dtype: torch.dtype) -> Tensor:
    images = torch.randn(setting.batch, 3, *setting.size, device=setting.device, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last)
