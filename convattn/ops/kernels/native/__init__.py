"""Optional kernels for the CPU, written in C. Each kernel is an operator of PyTorch.

Sliding-window attention uses the kernels with ``backend="native"`` or "auto", forward and backward.
If no gradient is required, window attention, the heads and the layer norms of GLNet, and GLMix's
similarities use them too.

The package contains the source files. The first call of a kernel compiles all kernels with the
compiler of the machine in a few seconds, stores the build in the user's cache, and checks each
kernel against its formula (`library`). If no compiler is found, or ``CONVATTN_NATIVE=0`` is set,
PyTorch's operators are used instead.
"""
