"""Child programs that end with this process, and free ports for them."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from tweezer.model.errors import TweezerError

HOST = "127.0.0.1"
_FREE_PORTS, _FREE_PORT_TRIES = (10_000, 32_000), 1000

# A tiny program sets the parent-death signal and then becomes the child, so that no Python code runs between fork and
# exec in a process with threads. The signal survives the exec. It is SIGKILL because a Redis that is busy in a script
# would ignore SIGTERM; everything that Redis has acknowledged is in the kernel by then.
_BY_DEATH_SIGNAL = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

# On other systems a child of the program waits for the end of a pipe that only the owner holds open.
_BY_PIPE = """
import os, sys
program = os.getpid()
if os.fork() == 0:
    os.closerange(3, 1024)
    os.read(0, 1)
    if os.getppid() == program:
        os.kill(program, 9)
    os._exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_owned(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program that is killed when this process ends for any reason. options: passed to ``Popen``.

    It runs in a separate process group, because Ctrl-C in a terminal is for the owner, which ends its programs in
    order. Raises OSError.
    """
    started: Future[subprocess.Popen[bytes]] = Future()
    threading.Thread(target=_own, args=(started, command, options), name="owner", daemon=True).start()
    return started.result()


def _own(started: Future[subprocess.Popen[bytes]], command: Sequence[str], options: dict[str, Any]) -> None:
    """Start the program and wait for its end, because the signal is sent when the *thread* that started it ends."""
    by_signal = sys.platform == "linux"
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BY_DEATH_SIGNAL if by_signal else _BY_PIPE, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL if by_signal else subprocess.PIPE,
            process_group=0,
            **options,
        )
    except BaseException as error:  # noqa: BLE001  raised in the caller
        started.set_exception(error)
        return
    started.set_result(process)
    process.wait()
    if process.stdin:
        process.stdin.close()


def is_free(port: int) -> bool:
    """Return whether the port is free on the loopback interface."""
    return why_not_free(port) is None


def why_not_free(port: int) -> str | None:
    """Return why the port cannot be used on the loopback interface; None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            return "requires root, as all ports below 1024 do"
        except OSError as error:
            return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return None


def free_port() -> int:
    """Return a port of the loopback interface that is free now.

    It is below the system's ephemeral ports, so that an outgoing connection does not take it.
    """
    for port in random.sample(range(*_FREE_PORTS), _FREE_PORT_TRIES):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise TweezerError(f"no free port found on {HOST}; give one", code="port")
