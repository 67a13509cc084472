"""The instructions of this machine's processor that PyTorch uses; each is detected once.

If oneDNN does not support a dtype, PyTorch's operators call another kernel, which is often slow,
and the fused operators (``torch.ops.mkldnn``) raise an error.
"""

from __future__ import annotations

from functools import cache

import torch

# Operators of PyTorch that return whether the processor has the instructions of oneDNN's kernels.
_QUESTIONS = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


@torch.compiler.assume_constant_result
def onednn_computes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN convolves and multiplies tensors of ``dtype`` on this processor.

    ``ATEN_CPU_CAPABILITY`` and ``ONEDNN_MAX_CPU_ISA``, set before PyTorch is imported, disable
    instructions.
    """
    return _answer(dtype)


@cache
def _answer(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return True
    answer = getattr(torch.ops.mkldnn, _QUESTIONS.get(dtype, ""), None)
    return answer is not None and bool(answer())


def multiplies(dtype: torch.dtype) -> bool:
    """Return whether matrix products of ``dtype`` are fast; half precision needs instructions."""
    return dtype in (torch.float32, torch.float64) or onednn_computes(dtype)


def vector_instructions() -> str:
    """Return which vector instructions PyTorch's kernels use here: "AVX512", "AVX2", "DEFAULT"."""
    return torch.backends.cpu.get_cpu_capability()
