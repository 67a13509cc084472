"""What this machine's processor can do, as PyTorch uses it: asked once, before a kernel is taken.

PyTorch's own operators ask before they call oneDNN, and take another kernel where it cannot compute
a type; the fused ones (``torch.ops.mkldnn``) raise an error instead.
"""

from __future__ import annotations

from functools import cache

import torch

# PyTorch's questions: whether the processor has what oneDNN's convolutions of the type need.
_QUESTIONS = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


@cache
def onednn_convolves(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves tensors of ``dtype`` on this processor.

    ``ATEN_CPU_CAPABILITY`` and ``ONEDNN_MAX_CPU_ISA``, set before PyTorch is imported, take
    abilities away.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return True
    answer = getattr(torch.ops.mkldnn, _QUESTIONS.get(dtype, ""), None)
    return answer is not None and bool(answer())


def vector_instructions() -> str:
    """Return which vector instructions PyTorch's kernels use here: "AVX512", "AVX2", "DEFAULT"."""
    return torch.backends.cpu.get_cpu_capability()
