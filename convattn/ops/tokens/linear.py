"""A linear layer of tokens.

| path   | computes                                                                   |
|--------|----------------------------------------------------------------------------|
| "conv" | a 1x1 convolution of the tokens as a map of one row, without gradients     |
| "aten" | ``linear``                                                                 |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.convolution.gelu import is_onednn
from convattn.ops.old_dispatch import Case, Rule, choose, describe

MANY = 1024  # tokens of a batch, as of which oneDNN adds the bias for less than a copy of it


def _conv(case: Case) -> bool:
    many = case.dtype == torch.float32 or case.height >= MANY
    # With one thread PyTorch takes another kernel for small 1x1 convolutions.
    return many and is_onednn(case) and torch.get_num_threads() > 1


# Two cores, from 256 to 768 channels.
RULES: tuple[Rule, ...] = (
    ("conv", _conv, "8 x 196 tokens: float32 1.4 ms, aten 2.9; bfloat16 0.67, 0.81"),
    (
        "aten",
        lambda _: True,
        "bfloat16, 8 x 64 tokens: 0.29 ms, conv 0.28; 8 x 49 0.28, 0.37",
    ),
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias`` for tokens (B, N, C)."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    case = describe(x.flatten(0, 1), *tensors[1:])
    alike = all(t.dtype == x.dtype for t in tensors)
    if choose(RULES, case) == "aten" or not (alike and x.is_contiguous() and x.numel() > 0):
        return F.linear(x, weight, bias)
    B, N, C = x.shape
    # Channels last, also of one image: the stride of the batch may be anything there.
    row = x.as_strided((B, C, 1, N), (N * C, 1, N * C, C))
    return F.conv2d(row, weight[:, :, None, None], bias).squeeze(2).transpose(1, 2)
