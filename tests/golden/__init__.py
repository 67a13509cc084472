"""The numbers that the papers' authors' own code computes, read from this folder."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.golden import fill

FOLDER = Path(__file__).parent


@cache
def _index() -> dict[str, dict]:
    return json.loads((FOLDER / "index.json").read_text())


@cache
def _outputs() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "outputs.npz") as archive:
        return dict(archive)


class Fixture:
    """One fixture: weights in the published naming, the input, the output, the gradients."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entry = _index()[name]

    def state(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The weights under the names of the published checkpoint."""
        values = fill.state(self.entry["parameters"])
        return {k: torch.as_tensor(np.asarray(v)).to(dtype) for k, v in values.items()}

    def images(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The input."""
        spec = self.entry["input"]
        return torch.from_numpy(fill.images(spec["seed"], spec["shape"])).to(dtype)

    def probe(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The weights of the sum whose gradients are stored."""
        spec = self.entry["probe"]
        return torch.from_numpy(fill.images(spec["seed"], spec["shape"])).to(dtype)

    def output(self) -> Tensor:
        """What the authors' code gives in evaluation, in float64."""
        return torch.from_numpy(_outputs()[self.name])

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of ``(output * probe).sum()`` by published name; the input's is ``input``."""
        prefix = f"{self.name}.grad."
        grads = {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in _outputs().items()
            if key.startswith(prefix)
        }
        if f"{self.name}.input_grad" in _outputs():
            grads["input"] = torch.from_numpy(_outputs()[f"{self.name}.input_grad"])
        return grads


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the standard deviation of what the authors' code gives."""
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().std()).item()
