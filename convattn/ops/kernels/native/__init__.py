"""Optional kernels for the CPU, written in C, each an operator of PyTorch.

Sliding windows use them by ``backend="native"`` or "auto", forward and backward; without gradients
windows, the heads and the layer norms of GLNet, and GLMix's similarities use them too.

The package contains their source. The first call that needs one compiles all of them with the
machine's own compiler, in a few seconds, keeps the build in the user's cache, and checks each
kernel against its formula: `library`. Where there is no compiler, or ``CONVATTN_NATIVE=0`` is set,
PyTorch's own operators compute the same.
"""
