"""Optional kernels for the CPU, written in C, behind ``backend="native"`` and "auto".

The package has their source alone. The first call that wants one compiles it with the machine's own
compiler, in a second or two, and keeps the result in the user's cache: `library`. Where there is
none, or ``CONVATTN_NATIVE=0`` is set, PyTorch's own operators compute the same.
"""
