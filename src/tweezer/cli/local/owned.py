"""``python -m tweezer.cli.local.owned PID command …``: a command of ours that dies with the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def die_with(owner: int) -> None:
    """Make sure that this process ends when its parent does, however that ends.

    The parent must not start us from a thread that ends before we do: on Linux the signal comes with the end of
    the thread. Elsewhere the parent holds a pipe open as our stdin.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_die_at_end_of_stdin, name="owner", daemon=True).start()
    if os.getppid() != owner:
        sys.exit(1)


def _die_at_end_of_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))

    from tweezer.cli import main

    main(prog_name="tweezer")
