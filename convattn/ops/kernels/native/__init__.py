"""Optional kernels for the CPU, written in C.

Sliding windows take them by ``backend="native"`` or "auto", forward and backward; without gradients
windows, the heads and the layer norms of GLNet, and GLMix's similarities take them by rule.

The package has their source alone. The first call that wants one compiles it with the machine's own
compiler, in a few seconds, and keeps the result in the user's cache: `library`. Where there is
none, or ``CONVATTN_NATIVE=0`` is set, PyTorch's own operators compute the same.
"""
