"""Becomes another program that ends with the process that started it; run as a file.

    python tied.py PARENT CORES WORD...

PARENT is the number of that process, CORES those to keep to, with commas between, or `-` for all.
Apart from it, as little may be done between a fork and an exec where there are threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ties this process, and becomes the other program."""
    parent, cores, *words = sys.argv[1:]
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    if sys.platform == "linux":
        # SIGTERM: it saves, and whoever takes the trial over loses nothing.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(parent):  # it died before
            sys.exit(75)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
