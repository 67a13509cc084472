"""The command ``convattn``, and ``python -m convattn``.

The imports of a command take seconds. Ctrl-C during an import must not print a traceback, so this
module handles the signal before it imports anything large.
"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line and return the exit status."""
    # A process that ignores Ctrl-C, such as one under nohup, still does.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from convattn.cli import main as run

        return run()
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # no traceback while Python exits
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Exit if Ctrl-C comes during an import; else raise `KeyboardInterrupt`.

    Python drops a `KeyboardInterrupt` that is raised in a callback of its import system, and a
    library may turn one that is raised in its import into another error.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"\nInterrupted.\n")
            os._exit(130)
        frame = frame.f_back
    signal.default_int_handler(number, frame)


if __name__ == "__main__":
    sys.argv[0] = "convattn"  # a run records the command
    sys.exit(main())
