"""Programs that never live longer than this process, and ports for them."""

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

# The parent-death signal is set in a tiny program that then becomes the child: no code of ours runs between fork and
# exec in a process that has threads. It survives the exec, and is SIGKILL because a Redis that is busy in a script
# would not heed SIGTERM; whatever Redis has acknowledged is with the kernel by then.
_BY_DEATH_SIGNAL = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

# Elsewhere a child of the program waits for the end of a pipe that only the owner holds open.
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
    """Start a program that is killed when this process ends, however it ends. options: of ``Popen``.

    It has a process group of its own: Ctrl-C in a terminal is for the owner, which ends its programs in order. Raises
    OSError.
    """
    started: Future[subprocess.Popen[bytes]] = Future()
    threading.Thread(target=_own, args=(started, command, options), name="owner", daemon=True).start()
    return started.result()


def _own(started: Future[subprocess.Popen[bytes]], command: Sequence[str], options: dict[str, Any]) -> None:
    """Start the program and wait for its end: the signal is sent when the *thread* that started it ends."""
    by_signal = sys.platform == "linux"
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BY_DEATH_SIGNAL if by_signal else _BY_PIPE, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL if by_signal else subprocess.PIPE,
            process_group=0,
            **options,
        )
    except BaseException as error:  # noqa: BLE001  raised where the program was to be started
        started.set_exception(error)
        return
    started.set_result(process)
    process.wait()
    if process.stdin:
        process.stdin.close()


def is_free(port: int) -> bool:
    """Return whether the port can be listened on, on the loopback."""
    return why_not_free(port) is None


def why_not_free(port: int) -> str | None:
    """Return why the port cannot be listened on, on the loopback; None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            return "needs root, as ports below 1024 do"
        except OSError as error:
            return "is taken" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
    return None


def free_port() -> int:
    """Return a port of the loopback that nobody listens on now.

    It is below those that the system gives to connections, one of which could take it before it is used.
    """
    for port in random.sample(range(*_FREE_PORTS), _FREE_PORT_TRIES):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise TweezerError(f"no port of {HOST} can be listened on: name one", code="port")
